package bolt

import (
	"container/heap"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

const (
	// expireBatch bounds how many leases end at once: after a long time without power all have
	// ended, and the apiserver wants to write too.
	expireBatch = 16
	// expireRetry is the wait after a removal has met a full disk.
	expireRetry = 10 * time.Second
)

// leases is the table of leases: when they end, and which keys end with them. It measures time by
// the process's monotonic clock: setting the clock neither ends leases early nor keeps them. Only
// the time left at a restart comes from wall clocks.
type leases struct {
	// mu guards the rest. queue and byID hold the same leases.
	mu    sync.Mutex
	queue leaseQueue
	byID  map[int64]*lease
	byKey map[string]*lease
	// wake wakes the expirer because the earliest end may have changed.
	wake chan struct{}
}

type lease struct {
	id, ttl int64
	ends    time.Time
	keys    map[string]struct{}
	index   int // in the queue
	// saved is true if the lease is on the disk. Writer goroutine only.
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

// restore adds a lease from the file. The clock may have been set since, and on a machine without
// one it certainly was: the time left is never more than the whole lease.
func (l *leases) restore(id int64, row format.Lease) {
	whole := time.Duration(row.TTL) * time.Second
	left := min(max(time.Until(time.Unix(row.Ends, 0)), 0), whole)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setLocked(&lease{id: id, ttl: row.TTL, ends: time.Now().Add(left), saved: true})
}

// apply follows a transaction that was committed.
func (l *leases) apply(granted map[int64]*lease, events []Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range granted {
		if one != nil {
			l.setLocked(one)
		}
	}
	for _, e := range events {
		l.attachLocked(e.KV.Key, e.KV.Lease)
	}
	for id, one := range granted {
		if one == nil {
			l.dropLocked(id)
		}
	}
}

// attachLocked ties a key to a lease, and unties it from the one that it had. Lease 0 is none.
func (l *leases) attachLocked(key string, id int64) {
	if old := l.byKey[key]; old != nil {
		delete(old.keys, key)
		delete(l.byKey, key)
	}
	if one := l.byID[id]; one != nil {
		one.keys[key] = struct{}{}
		l.byKey[key] = one
	}
}

// setLocked adds a lease, or replaces the times of the one with its number.
func (l *leases) setLocked(one *lease) {
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

// remove forgets a lease whose keys have been removed.
func (l *leases) remove(id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropLocked(id)
}

// dropLocked forgets a lease, if there is one of this number.
func (l *leases) dropLocked(id int64) {
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

// due returns some leases that have ended. If there are none, it returns how long until the next
// one ends; negative means never.
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

// expire is the expirer: it ends the leases whose time is over, and sleeps until the next end.
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

// revokeEnded ends leases in as few transactions as the writer can, and returns when to check
// again.
func (s *Store) revokeEnded(ended []int64) (time.Duration, error) {
	ctx := context.Background()
	requests := make([]*request, len(ended))
	for i, id := range ended {
		req, err := s.enqueue(ctx, func(tx *writeTx) (answer, error) {
			if l := tx.lease(id); l == nil || l.ends.After(tx.now) {
				return answer{}, nil // revoked or renewed since
			}
			_, err := tx.revoke(id) // the rest ends in the next round
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

// leaseQueue is a heap.Interface, the earliest end first.
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
