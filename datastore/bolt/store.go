package bolt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"
)

// Store is an open store. It runs three goroutines, which Close ends: the writer, the expirer of
// leases and the scrubber of compacted history.
type Store struct {
	db       *bbolt.DB
	requests chan *request
	hub      *hub
	leases   *leases
	// scrub wakes the scrubber.
	scrub chan struct{}

	// revision and compacted are what the last published transaction left in the meta bucket.
	revision, compacted atomic.Int64

	closing chan struct{} // closed: take no more requests
	written chan struct{} // closed: the writer has returned
	workers sync.WaitGroup
	close   sync.Once
	// failed is closed after failure has been set: the disk broke and nothing can be trusted.
	failed  chan struct{}
	failure error
}

// Open opens the store at path, or makes one, with its folder. The error says what to do.
func Open(path string) (*Store, error) {
	db, err := openFile(path)
	if err != nil {
		return nil, err
	}
	s := &Store{
		db:       db,
		requests: make(chan *request, maxBatch),
		leases:   newLeases(),
		scrub:    make(chan struct{}, 1),
		closing:  make(chan struct{}),
		written:  make(chan struct{}),
		failed:   make(chan struct{}),
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot read datastore %s: %w; restore a backup", path, err), db.Close())
	}
	s.hub = newHub(s.history, s.revision.Load())
	s.workers.Go(s.write)
	s.workers.Go(s.expire)
	s.workers.Go(s.scrubber)
	return s, nil
}

// load reads what the store keeps in memory: revisions, and keys with leases.
func (s *Store) load() error {
	return s.db.View(func(tx *bbolt.Tx) error {
		r := newReader(tx)
		s.revision.Store(r.revision)
		s.compacted.Store(r.compacted)
		if getMeta(tx.Bucket(bucketMeta()), metaScrubbed) < r.compacted {
			s.scrub <- struct{}{}
		}
		return r.keys.ForEach(func(key, row []byte) error {
			h, err := decodeHeader(key, row)
			if err == nil && h.lease > 0 {
				s.leases.restore(string(key), h)
			}
			return err
		})
	})
}

// Close answers the requests that were taken, ends all watches and closes the file.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		close(s.closing)
		s.workers.Wait()
		s.hub.close()
		err = s.db.Close()
	})
	return err
}

// Failed is closed when the disk refused a write in a way that leaves the file in doubt. From then
// on every request fails; only opening the file anew tells what is on the disk. See Failure.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Failure is why Failed is closed. It may be called only after that.
func (s *Store) Failure() error { return s.failure }

// Revision is the last revision that was given out and published to watches.
func (s *Store) Revision() int64 { return s.revision.Load() }

// Compacted is the revision below which there is no history.
func (s *Store) Compacted() int64 { return s.compacted.Load() }

// Size is the size of the store in bytes, free pages included.
func (s *Store) Size() (int64, error) {
	var size int64
	err := s.view(func(tx *bbolt.Tx) error {
		size = tx.Size()
		return nil
	})
	return size, err
}

// Create makes key with a time to live of lease seconds (0: for ever). It returns the new revision,
// or ErrExists and the current one.
func (s *Store) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	res, err := s.submit(ctx, func(tx *writeTx) (result, error) {
		return tx.create(key, value, lease)
	})
	return res.revision, err
}

// Update replaces key if its last write has the revision guard. It returns the new revision, the
// new version and true; or the current revision, the version in the way (nil: none) and false.
func (s *Store) Update(ctx context.Context, key string, value []byte, guard, lease int64) (int64, *KV, bool, error) {
	res, err := s.submit(ctx, func(tx *writeTx) (result, error) {
		return tx.update(key, value, guard, lease)
	})
	return res.revision, res.kv, res.ok, err
}

// Delete removes key if its last write has the revision guard; 0 removes any. It returns the new
// revision, what was removed and true; or the current revision, the version in the way (nil: none)
// and false.
func (s *Store) Delete(ctx context.Context, key string, guard int64) (int64, *KV, bool, error) {
	res, err := s.submit(ctx, func(tx *writeTx) (result, error) {
		return tx.remove(key, guard)
	})
	return res.revision, res.kv, res.ok, err
}

// Watch sends every change of the keys in [key, end) from revision from on (0: from now on) to
// sink, until ctx or the store ends. end is as in Query. Without error, sink.End is called once.
func (s *Store) Watch(ctx context.Context, key, end string, from int64, sink Sink) error {
	if from > 0 && from <= s.compacted.Load() {
		return ErrCompacted
	}
	return s.hub.add(ctx, key, end, from, sink)
}

// WaitDelivered blocks until every watch has been given its events up to revision, or has ended.
func (s *Store) WaitDelivered(revision int64) { s.hub.wait(revision) }
