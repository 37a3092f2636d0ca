package bolt

import (
	"context"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/internal/durable"
)

// Compact gives up the history below revision: what was valid at revision and all after it stays. It
// returns the current revision; reads of older ones are refused from then on. The newest layer is cleaned
// at once, the file with the next checkpoints: a compaction alone writes nothing, and a crash may undo it.
func (s *Store) Compact(ctx context.Context, revision int64) (int64, error) {
	res, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		switch {
		case revision > tx.revision:
			return tx.refuse(ErrFutureRevision), nil
		case revision <= tx.compacted:
			return tx.refuse(ErrCompacted), nil
		}
		tx.compacted = revision
		if tx.over {
			s.space.reclaim.Store(true)
		}
		tx.dirty = true
		return tx.refuse(nil), nil
	})
	return res.Revision, err
}

// compactNewest drops what is not needed of the newest layer. Who reads it now goes on with the old one.
func (s *Store) compactNewest(revision int64) {
	cleaned := s.newest().compact(revision)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted.Store(revision)
	s.layers = append([]*layer{cleaned}, s.layers[1:]...)
}

// scrubStep is how many records of the log are looked at in one transaction.
const scrubStep = 4096

// scrubOn goes on with what the checkpoint left, until there is nothing left or another one waits.
func (s *Store) scrubOn() {
	for done := false; !done && len(s.checkpoints) == 0; {
		select {
		case <-s.closing:
			return
		default:
		}
		err := s.db.View(func(tx *bbolt.Tx) error {
			counters := format.CountersOf(tx.Bucket([]byte(format.MetaBucket)))
			done = counters.Scrubbed >= scrubTarget(counters)
			return nil
		})
		if err == nil && !done {
			err = format.Update(s.db, scrub)
		}
		if durable.IsDiskFull(err) {
			return // the next checkpoint goes on
		}
		if err != nil {
			_ = s.fail(err)
			return
		}
	}
}

// scrubTarget is up to where history can be removed: the record of the compacted revision itself is kept, see knows.
func scrubTarget(c format.Counters) int64 { return max(c.Compacted-1, 0) }

// scrub cleans a step of the file's log up to below the compacted revision. Each record there makes the version
// before it unreachable, and a deletion is unreachable itself.
func scrub(tx *format.Tx) error {
	target := max(scrubTarget(tx.Counters), tx.Scrubbed)
	var dead []int64
	var gone [][]byte
	c := tx.Log.Cursor()
	looked := 0
	for k, b := c.Seek(format.RevisionKey(tx.Scrubbed + 1)); k != nil && format.RevisionOf(k) <= target; k, b = c.Next() {
		if looked++; looked > scrubStep {
			target = format.RevisionOf(k) - 1
			break
		}
		rec, err := format.DecodeRecord(k, b)
		if err != nil {
			return err
		}
		if rec.Prev != 0 {
			dead = append(dead, rec.Prev)
		}
		if rec.Deleted {
			dead = append(dead, rec.Mod)
			gone = append(gone, append([]byte{}, rec.Key...))
		}
	}
	for _, revision := range dead {
		if err := tx.Log.Delete(format.RevisionKey(revision)); err != nil {
			return err
		}
	}
	for _, key := range gone {
		if err := forget(tx, key, target); err != nil {
			return err
		}
	}
	tx.Scrubbed = target
	return nil
}

// forget removes the index row of key if its latest version is a deletion at or below revision.
func forget(tx *format.Tx, key []byte, revision int64) error {
	row := tx.Keys.Get(key)
	if row == nil {
		return nil
	}
	h, err := format.DecodeHeader(key, row)
	if err != nil || !h.Deleted || h.Mod > revision {
		return err
	}
	return tx.Keys.Delete(key)
}
