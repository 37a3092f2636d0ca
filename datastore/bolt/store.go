package bolt

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/datastore/wal"
	"github.com/mote-k8s/mote/internal/durable"
)

// Store is an open store. It runs three goroutines, which Close ends: the writer, the checkpointer
// and the expirer of leases.
type Store struct {
	options  Options
	path     string
	db       *bbolt.DB
	requests chan *request
	hub      *hub
	leases   *leases
	counters counters
	repairs  []rescue.Repair
	damaged  atomic.Bool // damage was met
	space    space

	// For the writer alone, and for Close after it. ceiling is the ceiling that the last frame of
	// the log has promised.
	wal         *wal.Log
	ceiling     int64
	burst       burst
	payload     []byte      // a buffer for frames
	pending     *checkpoint // until it is known to be done
	checkpoints chan *checkpoint

	// mu guards layers: the slice and which layers are in it; see view.
	mu     sync.RWMutex
	layers []*layer
	// revision and compacted are the values after the last transaction that was published.
	revision, compacted atomic.Int64

	closing      chan struct{} // closed: take no more requests
	written      chan struct{} // closed: the writer has returned
	workers      sync.WaitGroup
	checkpointed sync.WaitGroup
	close        sync.Once
	// failed is closed once failure is set: the disk broke, and nothing can be trusted.
	failing sync.Once
	failed  chan struct{}
	failure error
}

// Close answers the requests that were accepted, ends all watches, writes all data in memory to the
// file and closes it.
func (s *Store) Close() error {
	var err error
	s.close.Do(func() {
		close(s.closing)
		s.workers.Wait()
		close(s.checkpoints)
		s.checkpointed.Wait()
		s.hub.close()
		err = errors.Join(s.lastCheckpoint(), s.wal.Close(), s.space.file.Close(), s.db.Close())
	})
	return err
}

// lastCheckpoint writes all data in memory to the file, so that the log has none that is still
// needed. Without room for that, the next Open reads the log; the volatile writes in memory are
// then lost.
func (s *Store) lastCheckpoint() error {
	if s.currentFailure() != nil {
		return nil // the failure has been reported
	}
	if s.damaged.Load() { // the next start examines everything
		f := format.Frame{Revision: s.revision.Load(), Compacted: s.compacted.Load(), Ceiling: s.ceiling}
		return s.wal.Append(f.Append(nil))
	}
	var saved int64
	err := s.view(func(v *view) error {
		saved = format.CountersOf(v.meta).Compacted
		return nil
	})
	if err == nil && s.pending != nil && s.pending.err != nil {
		err = s.writeCheckpoint(s.pending)
	}
	if err == nil && (!s.newest().empty() || s.ceiling != 0 || s.compacted.Load() != saved) {
		var cp *checkpoint
		if cp, err = s.newCheckpoint(); err == nil {
			cp.ceiling = 0
			err = s.writeCheckpoint(cp)
		}
	}
	if durable.IsDiskFull(err) || errors.Is(err, ErrNoSpace) {
		return nil
	}
	return err
}

// Failed is closed when the disk refused a write in a way that leaves the files in doubt. From then
// on every request fails; only the next Open knows what is on the disk. See Failure.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// Failure returns why Failed is closed. Call it only after that.
func (s *Store) Failure() error { return s.failure }

// Revision returns the last revision that was given out and published to watches.
func (s *Store) Revision() int64 { return s.revision.Load() }

// Compacted returns the revision below which there is no history.
func (s *Store) Compacted() int64 { return s.compacted.Load() }

// Size returns the size of the store's files in bytes, free pages included.
func (s *Store) Size() (int64, error) {
	stats, err := s.Stats()
	return stats.FileBytes + stats.LogBytes, err
}

// Repairs returns what this start repaired, and earlier ones since RepairsReported was last called,
// the oldest first.
func (s *Store) Repairs() []rescue.Repair { return s.repairs }

// RepairsReported records that the Repairs have been reported to the operator: the next Open does
// not return them again.
func (s *Store) RepairsReported() error { return rescue.ForgetRepairs(s.path) }

// Write does w if its guard holds. If it does not, Result has the version of the key that was met.
func (s *Store) Write(ctx context.Context, w Write) (Result, error) {
	return s.submit(ctx, func(tx *writeTx) (answer, error) { return tx.write(w) })
}
