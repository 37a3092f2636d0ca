package bolt

import (
	"slices"
	"sort"
	"sync"

	"github.com/google/btree"
)

// layer is what was written since some moment, in memory. The newest one grows at its end; an older one is
// on its way into the file. Its records are never changed.
type layer struct {
	// mu guards the rest.
	mu sync.RWMutex
	// log is in the order of revisions, which need not be next to each other.
	log []*record
	// index has the latest header of each key of the log.
	index *btree.BTreeG[row]
	// leases were changed; those with TTL 0 have ended.
	leases map[int64]leaseRow
	bytes  int
}

// row is a row of the key index.
type row struct {
	key string
	header
}

const (
	// treeDegree is google/btree's usual choice.
	treeDegree = 32
	// recordOverhead is what a record occupies in a layer beside key and value, roughly.
	recordOverhead = 300
	// leaseOverhead is what a lease's change occupies.
	leaseOverhead = 64
)

func newLayer() *layer {
	return &layer{
		index:  btree.NewG(treeDegree, func(a, b row) bool { return a.key < b.key }),
		leases: map[int64]leaseRow{},
	}
}

func (l *layer) add(records []*record, leases map[int64]leaseRow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, rec := range records {
		l.log = append(l.log, rec)
		l.index.ReplaceOrInsert(row{string(rec.key), rec.header})
		l.bytes += recordOverhead + len(rec.key) + len(rec.value)
	}
	for id, change := range leases {
		l.leases[id] = change
		l.bytes += leaseOverhead
	}
}

// size is about how much memory the layer occupies.
func (l *layer) size() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.bytes
}

func (l *layer) empty() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.log) == 0 && len(l.leases) == 0
}

// since returns the records from revision on.
func (l *layer) since(revision int64) []*record {
	l.mu.RLock()
	defer l.mu.RUnlock()
	at := sort.Search(len(l.log), func(i int) bool { return l.log[i].mod >= revision })
	return l.log[at:len(l.log):len(l.log)]
}

// record returns the record of a revision, or nil.
func (l *layer) record(revision int64) *record {
	if found := l.since(revision); len(found) > 0 && found[0].mod == revision {
		return found[0]
	}
	return nil
}

// latest returns the latest header of a key.
func (l *layer) latest(key string) (header, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	found, ok := l.index.Get(row{key: key})
	return found.header, ok
}

// rows returns the rows of a range, in order.
func (l *layer) rows(key, end string) []row {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var rows []row
	l.index.AscendGreaterOrEqual(row{key: key}, func(r row) bool {
		if !inRange(r.key, key, end) {
			return false
		}
		rows = append(rows, r)
		return true
	})
	return rows
}

// compact returns a layer without the records that nobody can ask for when the history below revision is
// given up: those that a later one up to revision replaces, and deletions before it of what only this layer had.
func (l *layer) compact(revision int64) *layer {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := newLayer()
	out.leases = l.leases
	last := map[string]int64{} // the revision up to revision that a key's later ones follow
	for _, rec := range l.log {
		if rec.mod <= revision {
			last[string(rec.key)] = rec.mod
		}
	}
	before := map[string]int64{} // the revision outside this layer that a key's first one follows
	var kept []*record
	for _, rec := range l.log {
		if rec.mod > revision {
			kept = append(kept, rec)
			continue
		}
		key := string(rec.key)
		if _, seen := before[key]; !seen {
			before[key] = rec.prev
		}
		if last[key] != rec.mod || rec.deleted && before[key] == 0 && rec.mod < revision {
			continue
		}
		if rec.prev != before[key] {
			linked := *rec
			linked.prev, linked.encoded = before[key], nil
			rec = &linked
		}
		kept = append(kept, rec)
	}
	out.add(slices.Clip(kept), nil)
	out.bytes += leaseOverhead * len(out.leases)
	return out
}
