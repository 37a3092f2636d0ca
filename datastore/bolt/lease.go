package bolt

import (
	"container/heap"
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// expireBatch bounds how many keys are removed at once: after a long time without power all
	// leases have ended, and the apiserver wants to write too.
	expireBatch = 128
	// expireRetry is when a removal that met a full disk is tried again.
	expireRetry = 10 * time.Second
)

// leases knows when keys expire. Time is the process's monotonic clock: a clock that is set
// neither expires keys early nor keeps them. Only the time left at a restart comes from wall clocks.
type leases struct {
	// mu guards queue and byKey, which hold the same.
	mu    sync.Mutex
	queue leaseQueue
	byKey map[string]*lease
	// wake tells the expirer that the earliest end may have changed.
	wake chan struct{}
}

type lease struct {
	key   string
	mod   int64 // the write that the lease counts from
	ends  time.Time
	index int // in the queue
}

func newLeases() *leases {
	return &leases{byKey: map[string]*lease{}, wake: make(chan struct{}, 1)}
}

// restore takes up a lease from the file. The clock may have been set while we were away, on a
// machine without a clock certainly: the time left is never more than the whole lease.
func (l *leases) restore(key string, h header) {
	whole := time.Duration(h.lease) * time.Second
	left := min(max(time.Until(time.Unix(h.expires, 0)), 0), whole)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(key, h.mod, time.Now().Add(left))
}

// apply follows the events of a transaction that happened at now.
func (l *leases) apply(events []Event, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		if !e.Deleted && e.KV.Lease > 0 {
			l.set(e.KV.Key, e.KV.Mod, now.Add(time.Duration(e.KV.Lease)*time.Second))
		} else if old := l.byKey[e.KV.Key]; old != nil {
			l.drop(old)
		}
	}
}

// set needs mu.
func (l *leases) set(key string, mod int64, ends time.Time) {
	old := l.byKey[key]
	if old != nil {
		old.mod, old.ends = mod, ends
		heap.Fix(&l.queue, old.index)
	} else {
		old = &lease{key: key, mod: mod, ends: ends}
		l.byKey[key] = old
		heap.Push(&l.queue, old)
	}
	if old.index == 0 {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// drop needs mu.
func (l *leases) drop(old *lease) {
	heap.Remove(&l.queue, old.index)
	delete(l.byKey, old.key)
}

// due takes the leases that have ended, and says how long until the next ends (negative: never).
func (l *leases) due(now time.Time) ([]*lease, time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ended []*lease
	for len(l.queue) > 0 && len(ended) < expireBatch && !l.queue[0].ends.After(now) {
		first := l.queue[0]
		l.drop(first)
		ended = append(ended, first)
	}
	if len(l.queue) == 0 {
		return ended, -1
	}
	return ended, max(l.queue[0].ends.Sub(now), 0)
}

// retry puts a lease back unless its key has been written since.
func (l *leases) retry(old *lease, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byKey[old.key] == nil {
		l.set(old.key, old.mod, at)
	}
}

// expire is the expirer: it removes keys whose lease has ended, and sleeps until the next ends.
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
		if !s.removeExpired(ended) {
			return
		}
		if next >= 0 {
			timer.Reset(next)
		}
	}
}

// removeExpired removes keys in as few transactions as the writer can. It returns false when the
// store has closed or failed.
func (s *Store) removeExpired(ended []*lease) bool {
	ctx := context.Background()
	requests := make([]*request, len(ended))
	for i, old := range ended {
		req, err := s.enqueue(ctx, func(tx *writeTx) (result, error) { return tx.remove(old.key, old.mod) })
		if err != nil {
			return false
		}
		requests[i] = req
	}
	for i, req := range requests {
		switch _, err := s.wait(ctx, req); {
		case errors.Is(err, ErrNoSpace):
			s.leases.retry(ended[i], time.Now().Add(expireRetry))
		case err != nil:
			return false
		}
	}
	return true
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
