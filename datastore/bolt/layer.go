package bolt

import (
	"slices"
	"sort"
	"sync"

	"github.com/google/btree"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// layer holds in memory the writes since some moment. The newest layer grows at its end; an older
// one is on its way into the file. Records in a layer never change.
type layer struct {
	// mu guards the rest.
	mu sync.RWMutex
	// log is in the order of revisions, which need not be next to each other.
	log []*format.Record
	// index has the latest header of each key of the log.
	index *btree.BTreeG[row]
	// leases are those that were changed. A lease with TTL 0 has ended.
	leases map[int64]format.Lease
	bytes  int
}

// row is a row of the key index.
type row struct {
	key string
	format.Header
}

const (
	// treeDegree is google/btree's usual choice.
	treeDegree = 32
	// recordOverhead is roughly how many bytes a record takes in a layer beside its key and value.
	recordOverhead = 300
	// leaseOverhead is the size in bytes of a changed lease.
	leaseOverhead = 64
)

func newLayer() *layer {
	return &layer{
		index:  btree.NewG(treeDegree, func(a, b row) bool { return a.key < b.key }),
		leases: map[int64]format.Lease{},
	}
}

func (l *layer) add(records []*format.Record, leases map[int64]format.Lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, rec := range records {
		l.log = append(l.log, rec)
		l.index.ReplaceOrInsert(row{string(rec.Key), rec.Header})
		l.bytes += recordOverhead + len(rec.Key) + len(rec.Value)
	}
	for id, change := range leases {
		l.leases[id] = change
		l.bytes += leaseOverhead
	}
}

// size returns roughly how many bytes of memory the layer takes.
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

// recordsFrom returns the records of revision and all later ones.
func (l *layer) recordsFrom(revision int64) []*format.Record {
	l.mu.RLock()
	defer l.mu.RUnlock()
	at := sort.Search(len(l.log), func(i int) bool { return l.log[i].Mod >= revision })
	return l.log[at:len(l.log):len(l.log)]
}

// record returns the record of a revision, or nil.
func (l *layer) record(revision int64) *format.Record {
	if found := l.recordsFrom(revision); len(found) > 0 && found[0].Mod == revision {
		return found[0]
	}
	return nil
}

// latest returns the latest header of a key.
func (l *layer) latest(key string) (format.Header, bool) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	found, ok := l.index.Get(row{key: key})
	return found.Header, ok
}

// rows returns the index rows of a range, in order.
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

// compact returns a layer without the records that no request can reach once the history below
// revision is removed: records that a later one up to revision replaces, and deletions before it of
// keys that only this layer had.
func (l *layer) compact(revision int64) *layer {
	l.mu.RLock()
	defer l.mu.RUnlock()
	out := newLayer()
	out.leases = l.leases
	last := map[string]int64{} // the revision up to revision that a key's later ones follow
	for _, rec := range l.log {
		if rec.Mod <= revision {
			last[string(rec.Key)] = rec.Mod
		}
	}
	before := map[string]int64{} // the revision outside this layer that a key's first one follows
	var kept []*format.Record
	for _, rec := range l.log {
		if rec.Mod > revision {
			kept = append(kept, rec)
			continue
		}
		key := string(rec.Key)
		if _, seen := before[key]; !seen {
			before[key] = rec.Prev
		}
		if last[key] != rec.Mod || rec.Deleted && before[key] == 0 && rec.Mod < revision {
			continue
		}
		if rec.Prev != before[key] {
			rec = rec.WithPrev(before[key])
		}
		kept = append(kept, rec)
	}
	out.add(slices.Clip(kept), nil)
	out.bytes += leaseOverhead * len(out.leases)
	return out
}
