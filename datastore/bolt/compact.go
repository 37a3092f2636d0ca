package bolt

import (
	"context"
	"encoding/binary"
	"errors"
)

// scrubStep is how many revisions the scrubber cleans in one transaction. Writes wait for it: it
// is a few milliseconds of work.
const scrubStep = 256

// Compact gives up the history below revision: what was valid at revision and all after it stays.
// It returns the current revision once reads of older revisions are refused for good; the scrubber
// frees the space in small steps, and goes on after a restart.
func (s *Store) Compact(ctx context.Context, revision int64) (int64, error) {
	res, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		switch {
		case revision > tx.revision:
			return tx.refuse(ErrFutureRevision), nil
		case revision <= tx.compacted:
			return tx.refuse(ErrCompacted), nil
		}
		tx.compacted = revision
		tx.dirty = true
		return tx.refuse(nil), tx.scrub()
	})
	return res.Revision, err
}

func (s *Store) wakeScrubber() {
	select {
	case s.scrub <- struct{}{}:
	default:
	}
}

// scrubber frees compacted history, one step for each time that it is woken: a step that leaves
// work wakes it again.
func (s *Store) scrubber() {
	for {
		select {
		case <-s.scrub:
		case <-s.closing:
			return
		}
		_, err := s.submit(context.Background(), func(tx *writeTx) (answer, error) {
			return answer{}, tx.scrub()
		})
		if err != nil && !errors.Is(err, ErrNoSpace) {
			return // closed or failed: the next Open goes on
		}
	}
}

// scrub cleans the next revisions of the log up to the compacted one. Each record there makes the
// version before it unreachable, and a deletion is unreachable itself.
func (t *writeTx) scrub() error {
	if t.scrubbed >= t.compacted {
		return nil
	}
	target := min(t.compacted, t.scrubbed+scrubStep)
	var dead []int64
	var gone [][]byte
	c := t.log.Cursor()
	for k, v := c.Seek(revisionKey(t.scrubbed + 1)); k != nil && revisionOf(k) <= target; k, v = c.Next() {
		rec, err := decodeRecord(revisionOf(k), v)
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
	t.scrubbed = target
	t.dirty = true
	for _, revision := range dead {
		if err := t.log.Delete(revisionKey(revision)); err != nil {
			return err
		}
	}
	for _, key := range gone {
		if err := t.forget(key, target); err != nil {
			return err
		}
	}
	return nil
}

// forget removes the index row of key if its latest version is a deletion at or below revision.
func (t *writeTx) forget(key []byte, revision int64) error {
	row := t.keys.Get(key)
	if row == nil {
		return nil
	}
	h, err := decodeHeader(key, row)
	if err != nil || !h.deleted || h.mod > revision {
		return err
	}
	return t.keys.Delete(key)
}

func revisionOf(key []byte) int64 {
	return int64(binary.BigEndian.Uint64(key))
}
