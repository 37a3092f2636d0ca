package bolt

import (
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// maxFindings bounds what Check reports: one damaged page makes thousands.
const maxFindings = 100

// Check reads the whole file and compares pages, sums, log and index with the format's promises. It
// returns all that it found, joined; nil is a sound store. Checkpoints wait for it: bbolt can tell lost pages
// only while nobody frees any.
func (s *Store) Check() error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return closedError(err)
	}
	var found []error
	err = withFaults(func() error {
		found, err = s.check(tx)
		return err
	})
	return errors.Join(append(found, err, tx.Rollback())...)
}

func (s *Store) check(tx *bbolt.Tx) (found []error, err error) {
	i, err := s.image()
	if err != nil {
		return nil, err
	}
	roots, err := i.roots()
	if err != nil {
		return nil, err
	}
	if found = i.inspect(roots[0], true).findings(); len(found) > 0 {
		s.suspect.Store(true)
	} else {
		found = checkOrder(tx)
	}
	return bounded(found), nil
}

// checkOrder compares log and index of a file whose pages are sound.
func checkOrder(tx *bbolt.Tx) (found []error) {
	note := func(err error) {
		if err != nil {
			found = append(found, err)
		}
	}
	meta := tx.Bucket(bucketMeta())
	c := checker{
		log: tx.Bucket(bucketLog()), keys: tx.Bucket(bucketKeys()), leases: tx.Bucket(bucketLeases()),
		revision: getMeta(meta, metaRevision), compacted: getMeta(meta, metaCompacted),
		scrubbed: getMeta(meta, metaScrubbed), note: note,
	}
	c.counters()
	note(c.checkLog())
	note(c.checkKeys())
	return found
}

type checker struct {
	log, keys, leases             *bbolt.Bucket
	revision, compacted, scrubbed int64
	note                          func(error)
}

func (c *checker) counters() {
	if c.scrubbed > c.compacted || c.compacted > c.revision {
		c.note(fmt.Errorf("counters out of order: scrubbed %d, compacted %d, revision %d",
			c.scrubbed, c.compacted, c.revision))
	}
}

// checkLog looks at each record: is it reachable, and is what it refers to there?
func (c *checker) checkLog() error {
	scrubbed := map[string]int64{} // the record of a key that is left of the scrubbed history
	return c.log.ForEach(func(k, v []byte) error {
		revision := revisionOf(k)
		rec, err := decodeStored(k, v)
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
		if revision <= c.scrubbed {
			if old := scrubbed[string(rec.key)]; old != 0 {
				c.note(fmt.Errorf("record %d was replaced by record %d and not scrubbed", old, revision))
			}
			scrubbed[string(rec.key)] = revision
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
		rec, err := decodeStored(revisionKey(h.mod), c.log.Get(revisionKey(h.mod)))
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
