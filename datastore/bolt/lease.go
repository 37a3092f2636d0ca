package bolt

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

const (
	// expireBatch bounds how many leases end at once: after a long time without power all have ended,
	// and the apiserver wants to write too.
	expireBatch = 16
	// expireRetry is when a removal that met a full disk is tried again.
	expireRetry = 10 * time.Second
)

// Lease is a time to live that keys share.
type Lease struct {
	// ID is never 0.
	ID int64
	// TTL is how many seconds were granted, and Left how much of it is left.
	TTL  int64
	Left time.Duration
	// Keys are those that end with the lease, in order.
	Keys []string
}

// Grant makes a lease of ttl seconds, with the number id or, if that is 0, one of the store's choice. A
// crash may lose it until it has a key that is not volatile.
func (s *Store) Grant(ctx context.Context, id, ttl int64) (Lease, error) {
	var granted Lease
	_, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		for id == 0 {
			id = rand.Int64()
		}
		if tx.lease(id) != nil {
			return tx.refuse(ErrLeaseExists), nil
		}
		granted = Lease{ID: id, TTL: ttl, Left: time.Duration(ttl) * time.Second}
		tx.grant(id, ttl)
		return tx.refuse(nil), nil
	})
	return granted, err
}

// Renew gives a lease its whole time again.
func (s *Store) Renew(ctx context.Context, id int64) (Lease, error) {
	var renewed Lease
	_, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		l := tx.lease(id)
		if l == nil {
			return tx.refuse(ErrLeaseNotFound), nil
		}
		renewed = Lease{ID: id, TTL: l.ttl, Left: time.Duration(l.ttl) * time.Second}
		tx.grant(id, l.ttl)
		return tx.refuse(nil), nil
	})
	return renewed, err
}

// Revoke ends a lease and removes its keys: in one transaction, unless they have more than revokeBytes.
func (s *Store) Revoke(ctx context.Context, id int64) (int64, error) {
	for begun := false; ; begun = true {
		done := false
		res, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
			if tx.lease(id) == nil {
				if done = true; begun { // somebody else ended the rest of it
					return tx.refuse(nil), nil
				}
				return tx.refuse(ErrLeaseNotFound), nil
			}
			var err error
			done, err = tx.revoke(id)
			return tx.refuse(nil), err
		})
		if done || err != nil {
			return res.Revision, err
		}
	}
}

// Lease returns a lease with its keys, or ErrLeaseNotFound.
func (s *Store) Lease(id int64) (Lease, error) {
	l := s.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.byID[id]
	if one == nil {
		return Lease{}, ErrLeaseNotFound
	}
	out := Lease{ID: id, TTL: one.ttl, Left: max(time.Until(one.ends), 0)}
	for key := range one.keys {
		out.Keys = append(out.Keys, key)
	}
	slices.Sort(out.Keys)
	return out, nil
}

// Leases returns the numbers of all leases, in order.
func (s *Store) Leases() []int64 {
	l := s.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := make([]int64, 0, len(l.byID))
	for id := range l.byID {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// lease is what the transaction sees of a lease: nil if there is none.
func (t *writeTx) lease(id int64) *lease {
	if l, changed := t.granted[id]; changed {
		return l
	}
	return t.store.leases.get(id)
}

// grant makes a lease, or begins it anew. It becomes durable with the first key of it that is.
func (t *writeTx) grant(id, ttl int64) {
	l := &lease{id: id, ttl: ttl, ends: t.now.Add(time.Duration(ttl) * time.Second)}
	if old := t.lease(id); old != nil && old.saved {
		t.durable = true
	}
	t.granted[id] = l
	t.dirty = true
}

// revokeBytes is about how much the removals of one lease's keys may take of a transaction, whose frame the log must be able to read again.
const revokeBytes = 16 << 20

// revoke removes a lease's keys and ends it, or, if there are too many for one transaction, removes some and returns false.
func (t *writeTx) revoke(id int64) (done bool, err error) {
	keys := t.store.leases.keysOf(id)
	for _, e := range t.events { // what this transaction has attached is not in leases yet
		if e.KV.Lease == id {
			keys = append(keys, e.KV.Key)
		}
	}
	slices.Sort(keys)
	var found []*format.Record
	for _, key := range slices.Compact(keys) {
		last, err := t.latest(key)
		switch {
		case errors.Is(err, format.ErrDamaged):
			_ = t.store.damage(err)
			continue // the others must end
		case err != nil:
			return false, err
		}
		if last != nil && !last.Deleted && last.Lease == id {
			found = append(found, last)
		}
	}
	size := 0
	for _, last := range found {
		t.append(&format.Record{Header: format.Header{Deleted: true}, Prev: last.Mod, Key: bytes.Clone(last.Key)}, kvOf(last))
		if size += recordOverhead + len(last.Key); size > revokeBytes && last != found[len(found)-1] {
			return false, nil
		}
	}
	if l := t.lease(id); l.saved {
		t.durable = true
	}
	t.granted[id] = nil
	t.dirty = true
	return true, nil
}

// leases knows when leases end, and which keys go with them. Time is the process's monotonic clock: a
// clock that is set neither ends leases early nor keeps them. Only the time left at a restart comes
// from wall clocks.
type leases struct {
	// mu guards the rest. queue and byID hold the same leases.
	mu    sync.Mutex
	queue leaseQueue
	byID  map[int64]*lease
	byKey map[string]*lease
	// wake tells the expirer that the earliest end may have changed.
	wake chan struct{}
}

type lease struct {
	id, ttl int64
	ends    time.Time
	keys    map[string]struct{}
	index   int // in the queue
	// saved says that the lease is on the disk. It is the writer's.
	saved bool
}

func newLeases() *leases {
	return &leases{byID: map[int64]*lease{}, byKey: map[string]*lease{}, wake: make(chan struct{}, 1)}
}

func (l *leases) get(id int64) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byID[id]
}

func (l *leases) keysOf(id int64) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var keys []string
	if one := l.byID[id]; one != nil {
		for key := range one.keys {
			keys = append(keys, key)
		}
	}
	return keys
}

// restore takes up a lease from the file. The clock may have been set while we were away, on a
// machine without a clock certainly: the time left is never more than the whole lease.
func (l *leases) restore(id int64, row format.Lease) {
	whole := time.Duration(row.TTL) * time.Second
	left := min(max(time.Until(time.Unix(row.Ends, 0)), 0), whole)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(&lease{id: id, ttl: row.TTL, ends: time.Now().Add(left), saved: true})
}

// apply follows a transaction that was committed.
func (l *leases) apply(granted map[int64]*lease, events []Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range granted {
		if one != nil {
			l.set(one)
		}
	}
	for _, e := range events {
		l.attach(e.KV.Key, e.KV.Lease)
	}
	for id, one := range granted {
		if one == nil {
			l.drop(id)
		}
	}
}

// attach needs mu. Lease 0 only takes the key from the lease that it had.
func (l *leases) attach(key string, id int64) {
	if old := l.byKey[key]; old != nil {
		delete(old.keys, key)
		delete(l.byKey, key)
	}
	if one := l.byID[id]; one != nil {
		one.keys[key] = struct{}{}
		l.byKey[key] = one
	}
}

// set needs mu.
func (l *leases) set(one *lease) {
	if old := l.byID[one.id]; old != nil {
		old.ttl, old.ends, old.saved = one.ttl, one.ends, old.saved || one.saved
		heap.Fix(&l.queue, old.index)
	} else {
		one.keys = map[string]struct{}{}
		l.byID[one.id] = one
		heap.Push(&l.queue, one)
	}
	l.notify()
}

// remove forgets a lease; its keys have been removed.
func (l *leases) remove(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(id)
}

// drop needs mu.
func (l *leases) drop(id int64) {
	old := l.byID[id]
	if old == nil {
		return
	}
	for key := range old.keys {
		delete(l.byKey, key)
	}
	heap.Remove(&l.queue, old.index)
	delete(l.byID, id)
}

func (l *leases) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// due returns some leases that have ended and, if there are none, how long until the next one does
// (negative: never).
func (l *leases) due(now time.Time) ([]int64, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil, -1
	}
	if left := l.queue[0].ends.Sub(now); left > 0 {
		return nil, left
	}
	var ended []int64
	for _, one := range l.queue {
		if len(ended) < expireBatch && !one.ends.After(now) {
			ended = append(ended, one.id)
		}
	}
	return ended, 0
}

// expire is the expirer: it ends the leases whose time is over, and sleeps until the next one's is.
func (s *Store) expire() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.leases.wake:
		case <-s.closing:
			return
		}
		ended, next := s.leases.due(time.Now())
		if len(ended) > 0 {
			var err error
			if next, err = s.revokeEnded(ended); err != nil {
				return // closed or failed
			}
		}
		timer.Stop()
		if next >= 0 {
			timer.Reset(next)
		}
	}
}

// revokeEnded ends leases in as few transactions as the writer can, and says when to look again.
func (s *Store) revokeEnded(ended []int64) (time.Duration, error) {
	ctx := context.Background()
	requests := make([]*request, len(ended))
	for i, id := range ended {
		req, err := s.enqueue(ctx, func(tx *writeTx) (answer, error) {
			if l := tx.lease(id); l == nil || l.ends.After(tx.now) {
				return answer{}, nil // revoked or renewed since
			}
			_, err := tx.revoke(id) // what is left ends in the next round
			return answer{}, err
		})
		if err != nil {
			return 0, err
		}
		requests[i] = req
	}
	var next time.Duration
	for _, req := range requests {
		switch _, err := s.wait(ctx, req); {
		case errors.Is(err, ErrNoSpace):
			next = expireRetry
		case err != nil:
			return 0, err
		}
	}
	return next, nil
}

// leaseQueue is a heap.Interface, earliest end first.
type leaseQueue []*lease

func (q leaseQueue) Len() int           { return len(q) }
func (q leaseQueue) Less(i, j int) bool { return q[i].ends.Before(q[j].ends) }
func (q leaseQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *leaseQueue) Push(x any) {
	item := x.(*lease)
	item.index = len(*q)
	*q = append(*q, item)
}

func (q *leaseQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}
