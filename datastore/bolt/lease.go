package bolt

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// Lease is a time to live that keys share.
type Lease struct {
	// ID is the lease's number; it is never 0.
	ID int64
	// TTL is the number of seconds that were granted, and Left the number that remains.
	TTL  int64
	Left time.Duration
	// Keys are those that end with the lease, in order.
	Keys []string
}

// Grant makes a lease of ttl seconds, with the number id, or one of the store's choice if that is
// 0. It fails with ErrLeaseExists if the number is taken. Until the lease has a key that is not
// volatile, a crash may lose it.
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

// Renew gives a lease its whole time again, or fails with ErrLeaseNotFound.
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

// Revoke ends a lease and removes its keys, in one transaction unless they have more than
// revokeBytes. It returns the revision after that, or ErrLeaseNotFound.
func (s *Store) Revoke(ctx context.Context, id int64) (int64, error) {
	for begun := false; ; begun = true {
		done := false
		res, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
			if tx.lease(id) == nil {
				if done = true; begun { // another request ended the rest of it
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

// lease returns a lease as the transaction sees it: nil if there is none.
func (t *writeTx) lease(id int64) *lease {
	if l, changed := t.granted[id]; changed {
		return l
	}
	return t.store.leases.get(id)
}

// grant makes a lease, or begins it anew. It becomes durable with its first key that is durable.
func (t *writeTx) grant(id, ttl int64) {
	l := &lease{id: id, ttl: ttl, ends: t.now.Add(time.Duration(ttl) * time.Second)}
	if old := t.lease(id); old != nil && old.saved {
		t.durable = true
	}
	t.granted[id] = l
	t.changed = true
}

// revokeBytes is roughly how much of a transaction the removals of one lease's keys may take: the
// log must be able to read the frame again.
const revokeBytes = 16 << 20

// revoke removes the keys of a lease and ends it. If there are too many keys for one transaction,
// it removes some and returns false.
func (t *writeTx) revoke(id int64) (done bool, err error) {
	keys := t.store.leases.keysOf(id)
	for _, e := range t.events { // leases does not have the keys yet that this transaction has attached
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
			_ = t.store.noteDamage(err)
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
	t.changed = true
	return true, nil
}
