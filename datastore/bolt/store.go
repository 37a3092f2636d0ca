package bolt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

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

// Options are what an operator may choose. The zero value is the default.
type Options struct {
	// ProgressInterval is how long a watch that wants progress may know less than the current revision when
	// nothing happens in its range. The default is a minute: it must be well below the apiserver's five
	// minutes between compactions, or idle watches could not be resumed; each time wakes the apiserver
	// once for each resource.
	ProgressInterval time.Duration
}

const defaultProgressInterval = time.Minute

// Open opens the store at path, or makes one, with its folder. The error says what to do.
func Open(path string, o Options) (*Store, error) {
	if o.ProgressInterval <= 0 {
		o.ProgressInterval = defaultProgressInterval
	}
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
	s.hub = newHub(s, o.ProgressInterval)
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
		return s.loadLeases(tx)
	})
}

func (s *Store) loadLeases(tx *bbolt.Tx) error {
	err := tx.Bucket(bucketLeases()).ForEach(func(k, v []byte) error {
		id, row, err := decodeLease(k, v)
		if err == nil {
			s.leases.restore(id, row)
		}
		return err
	})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketKeys()).ForEach(func(key, row []byte) error {
		h, err := decodeHeader(key, row)
		if err == nil && h.lease != 0 {
			s.leases.attach(string(key), h.lease)
		}
		return err
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

// Write does w if its guard holds. When it does not, Result says what is in the way.
func (s *Store) Write(ctx context.Context, w Write) (Result, error) {
	return s.submit(ctx, func(tx *writeTx) (answer, error) { return tx.write(w) })
}
