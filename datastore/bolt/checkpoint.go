package bolt

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/internal/durable"
)

// layerLimit is the size in bytes at which the newest layer, or its part of the write-ahead log, is
// written to the file. Twice this may be in memory, and in the log to be read after a crash. The
// larger it is, the fewer pages of the file are written for each change; and a burst that is
// smaller is over before its pages are written: see quiet.go.
const layerLimit = 6 << 20

// checkpoint is a layer on its way into the file, with the counters that go with it.
type checkpoint struct {
	layer                        *layer
	revision, compacted, ceiling int64
	// sequence is the first sequence of the write-ahead log that the file will not have.
	sequence uint64
	// done is closed once err is final. An error means that there is no room; the layer is then
	// still needed.
	done chan struct{}
	err  error
	// recovered is true if the layer was read from the log. The log's files must not be overwritten
	// before the checkpoint is written.
	recovered bool
	// endsBurst is true if a large burst ends with it: memory is given back afterwards.
	endsBurst bool
}

func (s *Store) newest() *layer {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.layers[0]
}

// ensureRoom begins a new layer if the newest is full. It waits for the checkpoint before that one,
// which slows down writers that are faster than the disk. Writer goroutine only.
func (s *Store) ensureRoom() error {
	if first := s.pending != nil && s.pending.recovered; !first && s.wal.Used() < s.options.limit && int64(s.newest().size()) < s.options.limit {
		return nil
	}
	first := s.pending != nil && s.pending.recovered
	if err := s.awaitCheckpoint(); err != nil {
		return err
	}
	if first {
		return nil
	}
	return s.freeze(false)
}

// awaitCheckpoint waits until no checkpoint is under way. It starts one that had no room again, and
// returns why it had none. Writer goroutine only.
func (s *Store) awaitCheckpoint() error {
	if s.pending == nil {
		return nil
	}
	<-s.pending.done
	if err := s.currentFailure(); err != nil {
		return err
	}
	if err := s.pending.err; err != nil {
		again := *s.pending
		again.done, again.err = make(chan struct{}), nil
		s.pending = &again
		s.checkpoints <- s.pending
		return err
	}
	s.pending = nil
	return nil
}

// freeze puts an empty layer before the newest, and hands that one to the checkpointer. No other
// checkpoint may be under way.
func (s *Store) freeze(last bool) error {
	cp, err := s.newCheckpoint()
	if err != nil {
		return err
	}
	cp.endsBurst = last
	s.pending = cp
	s.mu.Lock()
	s.layers = []*layer{newLayer(), s.pending.layer}
	s.mu.Unlock()
	s.checkpoints <- s.pending
	return nil
}

// newCheckpoint returns a checkpoint of the newest layer. Writes from now on belong to the next
// checkpoint.
func (s *Store) newCheckpoint() (*checkpoint, error) {
	if s.wal.Used() > 0 {
		if err := s.wal.Rotate(); err != nil {
			return nil, s.refuseOrFail(err)
		}
	}
	return &checkpoint{
		layer: s.newest(), revision: s.revision.Load(), compacted: s.compacted.Load(), ceiling: s.ceiling,
		sequence: s.wal.Seq(), done: make(chan struct{}),
	}, nil
}

// checkpointer writes layers to the file, until the channel is closed.
func (s *Store) checkpointer() {
	for cp := range s.checkpoints {
		switch err := s.writeCheckpoint(cp); {
		case err == nil:
			s.mu.Lock()
			s.layers = []*layer{s.layers[0]} // a part of the slice would keep the memory of all
			s.mu.Unlock()
			cp.layer = nil // the writer keeps the checkpoint until it needs another one
			s.space.diskFull.Store(false)
		case durable.IsDiskFull(err):
			cp.err = noSpace(err)
			s.space.diskFull.Store(true)
		default:
			cp.err = s.fail(err)
		}
		close(cp.done)
		if cp.err == nil {
			s.finishScrub()
			if err := s.measure(); err != nil {
				_ = s.fail(err)
			}
			s.wakeWriter()
			if cp.endsBurst {
				freeMemory()
			}
		}
	}
}

// writeCheckpoint puts a layer into the file in one transaction.
func (s *Store) writeCheckpoint(cp *checkpoint) error {
	s.options.atCheckpoint(false)
	start := time.Now()
	if err := cp.put(s.db); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	s.counters.checkpoints.Add(1)
	addSince(&s.counters.checkpointing, start)
	s.options.atCheckpoint(true)
	return nil
}

// put writes a checkpoint to db in one transaction.
func (cp *checkpoint) put(db *bbolt.DB) error {
	return format.Update(db, func(tx *format.Tx) error {
		tx.Log.FillPercent = logFill
		if err := tx.PutRecords(cp.layer.recordsFrom(0)); err != nil {
			return err
		}
		for _, r := range cp.layer.rows("", allKeys) {
			if err := tx.Keys.Put([]byte(r.key), r.Header.Encode()); err != nil {
				return err
			}
		}
		for id, l := range cp.layer.leases {
			err := tx.Leases.Delete(format.RevisionKey(id))
			if l.TTL > 0 {
				err = tx.Leases.Put(format.RevisionKey(id), l.Encode())
			}
			if err != nil {
				return err
			}
		}
		tx.Revision, tx.Compacted, tx.Ceiling = cp.revision, cp.compacted, cp.ceiling
		tx.LogSequence, tx.LogMarked = int64(cp.sequence), 1
		return scrub(tx)
	})
}

// logFill is the share of a page of the log that bbolt fills when it splits the page: all of it,
// since revisions only grow.
const logFill = 1.0

// Checkpoint writes all that is in memory to the file.
func (s *Store) Checkpoint(ctx context.Context) error {
	var cp *checkpoint
	_, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		// The transaction has not published anything of this batch yet: it goes into the next
		// layer.
		if err := s.awaitCheckpoint(); err != nil {
			return tx.refuse(err), nil
		}
		if err := s.freeze(false); err != nil {
			return tx.refuse(err), nil
		}
		cp = s.pending
		return tx.refuse(nil), nil
	})
	if err != nil {
		return err
	}
	select {
	case <-cp.done:
		return cp.err
	case <-ctx.Done():
		return ctx.Err()
	}
}
