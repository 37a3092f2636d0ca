package bolt

import (
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// maxFindings bounds what Check reports: one damaged page makes thousands.
const maxFindings = 20

// Check reads the whole file and compares pages, log and index with the format's promises. It
// returns what it found, joined; nil is a sound store. Writes wait for it: bbolt can tell lost pages
// only while nobody frees any.
func (s *Store) Check() error {
	tx, err := s.begin()
	if err != nil {
		return err
	}
	found := tx.check()
	return errors.Join(append(found, tx.tx.Rollback())...)
}

func (t *writeTx) check() (found []error) {
	note := func(err error) {
		if err != nil && len(found) < maxFindings {
			found = append(found, err)
		}
	}
	for err := range t.tx.Check() {
		note(err)
	}
	if len(found) > 0 {
		return found // a walk over broken pages could panic
	}
	c := checker{reader: newReader(t.tx), leases: t.rows, scrubbed: getMeta(t.meta, metaScrubbed), note: note}
	c.counters()
	note(c.checkLog())
	note(c.checkKeys())
	return found
}

type checker struct {
	*reader
	leases   *bbolt.Bucket
	scrubbed int64
	note     func(error)
}

func (c *checker) counters() {
	if c.scrubbed > c.compacted || c.compacted > c.revision {
		c.note(fmt.Errorf("counters out of order: scrubbed %d, compacted %d, revision %d",
			c.scrubbed, c.compacted, c.revision))
	}
}

// checkLog looks at each record: is it reachable, and is what it refers to there?
func (c *checker) checkLog() error {
	return c.log.ForEach(func(k, v []byte) error {
		revision := revisionOf(k)
		rec, err := decodeRecord(revision, v)
		if err != nil {
			c.note(err)
			return nil
		}
		row := c.keys.Get(rec.key)
		switch {
		case revision > c.revision:
			c.note(fmt.Errorf("record %d is above the last revision %d", revision, c.revision))
		case rec.prev >= revision:
			c.note(fmt.Errorf("record %d follows the later record %d", revision, rec.prev))
		case row == nil:
			c.note(fmt.Errorf("record %d belongs to key %q, which has no index row", revision, rec.key))
		case rec.deleted && revision <= c.scrubbed:
			c.note(fmt.Errorf("record %d is a deletion that was not scrubbed", revision))
		case rec.version > 1 && revision > c.compacted && c.log.Get(revisionKey(rec.prev)) == nil:
			c.note(fmt.Errorf("record %d follows record %d, which is gone", revision, rec.prev))
		}
		return nil
	})
}

// checkKeys looks at each index row: is it the header of the record that it names?
func (c *checker) checkKeys() error {
	return c.keys.ForEach(func(key, row []byte) error {
		h, err := decodeHeader(key, row)
		if err != nil {
			c.note(err)
			return nil
		}
		rec, err := c.record(h.mod)
		switch {
		case h.lease != 0 && c.leases.Get(revisionKey(h.lease)) == nil:
			c.note(fmt.Errorf("key %q belongs to lease %x, which is not there", key, h.lease))
		case err != nil:
			c.note(fmt.Errorf("key %q: %w", key, err))
		case rec.header != h || string(rec.key) != string(key):
			c.note(fmt.Errorf("index row of key %q differs from record %d", key, h.mod))
		}
		return nil
	})
}
