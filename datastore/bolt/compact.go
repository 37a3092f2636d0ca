package bolt

import (
	"context"
	"encoding/binary"

	"go.etcd.io/bbolt"
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
			meta := tx.Bucket(bucketMeta())
			done = getMeta(meta, metaScrubbed) >= scrubTarget(meta)
			return nil
		})
		if err == nil && !done {
			err = update(s.db, scrub)
		}
		if isNoSpace(err) {
			return // the next checkpoint goes on
		}
		if err != nil {
			_ = s.fail(err)
			return
		}
	}
}

// scrubTarget is up to where history can be removed: the record of the compacted revision itself is kept, see knows.
func scrubTarget(meta *bbolt.Bucket) int64 { return max(getMeta(meta, metaCompacted)-1, 0) }

// scrub cleans a step of the file's log up to below the compacted revision. Each record there makes the version
// before it unreachable, and a deletion is unreachable itself.
func scrub(f *fileTx) error {
	scrubbed := getMeta(f.meta, metaScrubbed)
	target := max(scrubTarget(f.meta), scrubbed)
	var dead []int64
	var gone [][]byte
	c := f.log.Cursor()
	looked := 0
	for k, b := c.Seek(revisionKey(scrubbed + 1)); k != nil && revisionOf(k) <= target; k, b = c.Next() {
		if looked++; looked > scrubStep {
			target = revisionOf(k) - 1
			break
		}
		rec, err := decodeStored(k, b)
		if err != nil {
			return err
		}
		if rec.prev != 0 {
			dead = append(dead, rec.prev)
		}
		if rec.deleted {
			dead = append(dead, rec.mod)
			gone = append(gone, append([]byte{}, rec.key...))
		}
	}
	for _, revision := range dead {
		if err := f.delete(f.log, revisionKey(revision)); err != nil {
			return err
		}
	}
	for _, key := range gone {
		if err := forget(f, key, target); err != nil {
			return err
		}
	}
	return putMeta(f.meta, metaScrubbed, target)
}

// forget removes the index row of key if its latest version is a deletion at or below revision.
func forget(f *fileTx, key []byte, revision int64) error {
	row := f.keys.Get(key)
	if row == nil {
		return nil
	}
	h, err := decodeHeader(key, row)
	if err != nil || !h.deleted || h.mod > revision {
		return err
	}
	return f.delete(f.keys, key)
}

func revisionOf(key []byte) int64 {
	return int64(binary.BigEndian.Uint64(key))
}
