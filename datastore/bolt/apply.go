package bolt

import (
	"errors"
	"strings"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// writeTx is one transaction of the writer. All that it does is in memory until it is committed.
type writeTx struct {
	store *Store
	view  *view
	now   time.Time
	// revision and compacted begin as the view's.
	revision, compacted int64
	// pending has the latest record of each key that the transaction has written; records has all
	// of them, in order.
	pending map[string]*format.Record
	records []*format.Record
	events  []Event
	// granted holds the leases that this transaction changes; a lease that ends is nil.
	granted map[int64]*lease
	// changed means that there is something to publish, durable that some of it must be on the disk
	// before that, volatile that some need not be.
	changed, durable, volatile bool
	// overQuota is true if the quota was exceeded when the transaction began.
	overQuota bool
	bytes     int
}

func (s *Store) begin() (*writeTx, error) {
	v, err := s.open()
	if err != nil {
		return nil, err
	}
	return &writeTx{
		store: s, view: v, now: time.Now(), revision: v.revision, compacted: v.compacted,
		pending: map[string]*format.Record{}, granted: map[int64]*lease{}, overQuota: s.checkQuota(),
	}, nil
}

// apply runs a request. It refuses one that meets damage, and only that one: requests read before
// they change anything, so this one has changed nothing.
func (t *writeTx) apply(req *request) (out answer, err error) {
	err = format.CatchFaults(func() error {
		out, err = req.apply(t)
		return err
	})
	if errors.Is(err, format.ErrDamaged) {
		return t.refuse(t.store.noteDamage(err)), nil
	}
	return out, err
}

// latest returns the last record of key, which may be a deletion, or nil.
func (t *writeTx) latest(key string) (rec *format.Record, err error) {
	if rec := t.pending[key]; rec != nil {
		return rec, nil
	}
	err = format.CatchFaults(func() error {
		rec, err = t.view.latest(key)
		return err
	})
	return rec, err
}

// refuse returns an answer without a write. err may be nil.
func (t *writeTx) refuse(err error) answer {
	return answer{Result: Result{Revision: t.revision}, refusal: err}
}

// write compares w's guard with the latest version of the key, and writes if it holds.
func (t *writeTx) write(w Write) (answer, error) {
	switch {
	case w.Key == "" || len(w.Key) > maxKeySize:
		return t.refuse(ErrInvalidKey), nil
	case len(w.Value) > maxValueSize:
		return t.refuse(ErrTooLarge), nil
	}
	if t.overQuota && !w.Delete && !t.store.isVolatile(w.Key) {
		t.store.counters.refusals.Add(1)
		return t.refuse(ErrNoSpace), nil
	}
	last, err := t.latest(w.Key)
	if err != nil {
		return answer{}, err
	}
	var prev *KV
	if last != nil && !last.Deleted {
		prev = kvOf(last)
	}
	ok := w.Guard.holds(prev)
	switch {
	case !ok, w.Delete && prev == nil:
		return answer{Result: Result{Revision: t.revision, OK: ok, Prev: prev}}, nil
	case !w.Delete && w.Lease != 0 && t.lease(w.Lease) == nil:
		return t.refuse(ErrLeaseNotFound), nil
	}
	rec := &format.Record{Key: []byte(w.Key)}
	if last != nil {
		rec.Prev = last.Mod
	}
	switch {
	case w.Delete:
		rec.Deleted = true
	case prev == nil:
		rec.Value, rec.Lease = w.Value, w.Lease
		rec.Create, rec.Version = t.revision+1, 1
	default:
		rec.Value, rec.Lease = w.Value, w.Lease
		rec.Create, rec.Version = prev.Create, prev.Version+1
	}
	res := Result{OK: true, KV: t.append(rec, prev), Prev: prev, Revision: t.revision}
	if w.Delete {
		res.KV = nil
	}
	return answer{Result: res}, nil
}

// append gives rec the next revision and adds it to the transaction. prev is for the event.
func (t *writeTx) append(rec *format.Record, prev *KV) *KV {
	t.revision++
	rec.Mod = t.revision
	rec.Encode()
	if t.overQuota && rec.Deleted {
		t.store.space.reclaim.Store(true)
	}
	kv := kvOf(rec)
	t.pending[kv.Key] = rec
	t.records = append(t.records, rec)
	t.events = append(t.events, Event{Deleted: rec.Deleted, KV: kv, Prev: prev})
	t.changed = true
	if t.store.isVolatile(kv.Key) {
		t.volatile = true
	} else {
		t.durable = true
	}
	t.bytes += len(rec.Key) + len(rec.Value)
	return kv
}

// isVolatile reports whether a key is kept in memory until the next checkpoint.
func (s *Store) isVolatile(key string) bool {
	for _, prefix := range s.options.Volatile {
		if strings.HasPrefix(key, prefix) {
			return true
		}
	}
	return false
}

// frame returns the frame that must be on the disk before the transaction is published. ceiling is
// the store's ceiling.
func (t *writeTx) frame(ceiling int64) format.Frame {
	f := format.Frame{Revision: t.revision, Compacted: t.compacted, Ceiling: ceiling, Leases: t.leaseRows()}
	for _, rec := range t.records {
		if t.store.isVolatile(string(rec.Key)) {
			continue
		}
		f.Records = append(f.Records, rec)
		if l := t.lease(rec.Lease); l != nil && !l.saved {
			f.Leases[l.id] = l.row()
		}
	}
	return f
}

func (t *writeTx) leaseRows() map[int64]format.Lease {
	rows := make(map[int64]format.Lease, len(t.granted))
	for id, l := range t.granted {
		if l == nil {
			rows[id] = format.Lease{}
		} else {
			rows[id] = l.row()
		}
	}
	return rows
}

func (l *lease) row() format.Lease { return format.Lease{TTL: l.ttl, Ends: l.ends.Unix()} }
