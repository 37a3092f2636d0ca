package rescue

import (
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// Check reads the whole file of a running store, and compares pages, sums, log and index with the
// format's promises. It returns its findings, and whether they include damage of pages. err is the
// reason why the file cannot be read. tx keeps all writers out meanwhile: lost pages are found only
// while no transaction frees any.
func Check(file format.Image, tx *bbolt.Tx) (found []error, damaged bool, err error) {
	err = format.CatchFaults(func() error {
		commits, err := file.Commits()
		if err != nil {
			return err
		}
		found = inspect(file, commits[0], true).findings()
		if damaged = len(found) > 0; !damaged {
			found = checkOrder(tx)
		}
		return nil
	})
	return bounded(found), damaged, err
}

// checkOrder compares log and index of a file whose pages are sound.
func checkOrder(tx *bbolt.Tx) (found []error) {
	note := func(err error) {
		if err != nil {
			found = append(found, err)
		}
	}
	bucket := func(name string) *bbolt.Bucket { return tx.Bucket([]byte(name)) }
	c := checker{
		counters: format.CountersOf(bucket(format.MetaBucket)),
		log:      bucket(format.LogBucket), keys: bucket(format.KeysBucket), leases: bucket(format.LeasesBucket),
		note: note,
	}
	c.checkCounters()
	note(c.checkLog())
	note(c.checkKeys())
	return found
}

type checker struct {
	counters          format.Counters
	log, keys, leases *bbolt.Bucket
	note              func(error)
}

func (c *checker) checkCounters() {
	if n := c.counters; n.Scrubbed > n.Compacted || n.Compacted > n.Revision {
		c.note(fmt.Errorf("counters out of order: scrubbed %d, compacted %d, revision %d", n.Scrubbed, n.Compacted, n.Revision))
	}
}

// checkLog checks each record: can it be reached, and does the record that it refers to exist?
func (c *checker) checkLog() error {
	scrubbed := map[string]int64{} // the record of a key that is left of the scrubbed history
	return c.log.ForEach(func(k, v []byte) error {
		revision := format.RevisionOf(k)
		rec, err := format.DecodeRecord(k, v)
		if err != nil {
			c.note(err)
			return nil
		}
		c.checkRecord(revision, rec)
		if revision <= c.counters.Scrubbed {
			if old := scrubbed[string(rec.Key)]; old != 0 {
				c.note(fmt.Errorf("record %d was replaced by record %d and not scrubbed", old, revision))
			}
			scrubbed[string(rec.Key)] = revision
		}
		return nil
	})
}

func (c *checker) checkRecord(revision int64, rec format.Record) {
	row := c.keys.Get(rec.Key)
	switch {
	case revision > c.counters.Revision:
		c.note(fmt.Errorf("record %d is above the last revision %d", revision, c.counters.Revision))
	case rec.Prev >= revision:
		c.note(fmt.Errorf("record %d follows the later record %d", revision, rec.Prev))
	case row == nil:
		c.note(fmt.Errorf("record %d belongs to key %q, which has no index row", revision, rec.Key))
	case rec.Deleted && revision <= c.counters.Scrubbed:
		c.note(fmt.Errorf("record %d is a deletion that was not scrubbed", revision))
	case rec.Version > 1 && revision > c.counters.Compacted && c.log.Get(format.RevisionKey(rec.Prev)) == nil:
		c.note(fmt.Errorf("record %d follows record %d, which is gone", revision, rec.Prev))
	}
}

// checkKeys checks each index row: is it the header of the record that it names?
func (c *checker) checkKeys() error {
	return c.keys.ForEach(func(key, row []byte) error {
		h, err := format.DecodeHeader(key, row)
		if err != nil {
			c.note(err)
			return nil
		}
		rec, err := format.DecodeRecord(format.RevisionKey(h.Mod), c.log.Get(format.RevisionKey(h.Mod)))
		switch {
		case h.Lease != 0 && c.leases.Get(format.RevisionKey(h.Lease)) == nil:
			c.note(fmt.Errorf("key %q belongs to lease %x, which is not there", key, h.Lease))
		case err != nil:
			c.note(fmt.Errorf("key %q: %w", key, err))
		case rec.Header != h || string(rec.Key) != string(key):
			c.note(fmt.Errorf("index row of key %q differs from record %d", key, h.Mod))
		}
		return nil
	})
}
