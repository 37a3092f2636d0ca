package bolt

import (
	"context"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/internal/durable"
)

// Compact removes the history below revision: the versions that were valid at revision, and all
// later ones, stay. It returns the current revision. From then on, reads at older revisions are
// refused with ErrCompacted. The newest layer is cleaned at once, the file with the next
// checkpoints: a compaction alone writes nothing, and a crash may undo it.
func (s *Store) Compact(ctx context.Context, revision int64) (int64, error) {
	res, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		switch {
		case revision > tx.revision:
			return tx.refuse(ErrFutureRevision), nil
		case revision <= tx.compacted:
			return tx.refuse(ErrCompacted), nil
		}
		tx.compacted = revision
		if tx.overQuota {
			s.space.reclaim.Store(true)
		}
		tx.changed = true
		return tx.refuse(nil), nil
	})
	return res.Revision, err
}

// compactNewest replaces the newest layer by one without the records that no request can reach any
// more. Reads that are under way continue with the old one.
func (s *Store) compactNewest(revision int64) {
	cleaned := s.newest().compact(revision)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted.Store(revision)
	s.layers = append([]*layer{cleaned}, s.layers[1:]...)
}

// scrubStep is the number of records of the log that one transaction reads.
const scrubStep = 4096

// finishScrub removes the compacted history that the last checkpoint left, until none is left or
// another checkpoint waits.
func (s *Store) finishScrub() {
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
			return // the next checkpoint continues
		}
		if err != nil {
			_ = s.fail(err)
			return
		}
	}
}

// scrubTarget returns up to where history can be removed. The record of the compacted revision
// itself is kept: see hasHistory.
func scrubTarget(c format.Counters) int64 { return max(c.Compacted-1, 0) }

// scrub removes a step of the history up to below the compacted revision. Each record there makes
// the version before it unreachable, and a deletion is unreachable itself.
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
		if err := deleteIndexRow(tx, key, target); err != nil {
			return err
		}
	}
	tx.Scrubbed = target
	return nil
}

// deleteIndexRow removes the index row of key if its latest version is a deletion at or below
// revision.
func deleteIndexRow(tx *format.Tx, key []byte, revision int64) error {
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
