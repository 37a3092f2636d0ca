package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"go.etcd.io/bbolt"
)

// buildStep is how much goes into a new file in one transaction, in bytes.
const buildStep = 4 << 20

// builder fills a new file.
type builder struct {
	db    *bbolt.DB
	tx    *bbolt.Tx
	file  *fileTx
	bytes int
}

// build makes a store's file at path, which is replaced, with what fill puts into it. It is on the disk when build returns.
func build(path string, fill func(*builder) error) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	o := options()
	o.NoSync = true
	db, err := bbolt.Open(path, 0o600, o)
	if err != nil {
		return err
	}
	b := &builder{db: db}
	err = b.begin()
	if err == nil {
		for _, name := range buckets() {
			_, createErr := b.tx.CreateBucket(name)
			err = errors.Join(err, createErr)
		}
		b.file = openFileTx(b.tx)
	}
	if err == nil {
		err = fill(b)
	}
	if err == nil {
		err = b.commit()
	}
	if err == nil {
		err = db.Sync()
	}
	if err != nil && b.tx != nil {
		_ = b.tx.Rollback() // it may have been committed
	}
	return errors.Join(err, db.Close())
}

func (b *builder) begin() error {
	tx, err := b.db.Begin(true)
	if err != nil {
		return err
	}
	b.tx, b.bytes = tx, 0
	if tx.Bucket(bucketMeta()) != nil {
		b.file = openFileTx(tx)
	}
	return nil
}

func (b *builder) commit() error {
	if err := b.file.seal(); err != nil {
		return err
	}
	return b.tx.Commit()
}

// put adds an entry to a bucket.
func (b *builder) put(bucket, key, value []byte) error {
	if b.bytes += len(key) + len(value); b.bytes > buildStep {
		if err := errors.Join(b.commit(), b.begin()); err != nil {
			return err
		}
	}
	to := map[string]*bbolt.Bucket{
		string(bucketLog()): b.file.log, string(bucketKeys()): b.file.keys, string(bucketLeases()): b.file.leases,
	}[string(bucket)]
	return b.file.put(to, key, value)
}

// counters sets all counters but the sums.
func (b *builder) counters(values map[string]int64) error {
	var err error
	for field, n := range values {
		switch field {
		case metaLogSum, metaKeysSum, metaLeasesSum, metaSum:
		default:
			err = errors.Join(err, putMeta(b.file.meta, field, n))
		}
	}
	return errors.Join(err, putMeta(b.file.meta, metaFormat, Format))
}

// reread returns c for reading it once more.
func (c *contents) reread() *contents {
	again := *c
	again.tree = c.image.tree(c.root)
	again.damage = map[string][]error{}
	return &again
}

// copyBucket puts the entries of a bucket of c into b.
func (b *builder) copyBucket(c *contents, bucket []byte, change func(element) ([]byte, error)) error {
	var failed error
	c.reread().each(bucket, func(e element) {
		value := e.value
		if failed == nil && change != nil {
			value, failed = change(e)
		}
		if failed == nil {
			failed = b.put(bucket, e.key, value)
		}
	}, func(err error) { failed = errors.Join(failed, err) })
	return failed
}

// copyStore puts all that c has into b. What is damaged is made anew: the index from the log, the leases from the index; nothing else may
// be.
func (b *builder) copyStore(c *contents) error {
	latest := map[string]header{}
	leased := map[int64]bool{}
	err := b.copyBucket(c, bucketLog(), func(e element) ([]byte, error) {
		if c.counters[metaFormat] < formatSums {
			rec, err := decodeRecord(e.value)
			return encodeStored(&rec), err
		}
		if !c.damaged(string(bucketKeys())) {
			return e.value, nil
		}
		rec, err := decodeStored(e.key, e.value)
		latest[string(rec.key)] = rec.header
		return e.value, err
	})
	if err != nil {
		return err
	}
	if !c.damaged(string(bucketKeys())) {
		err = b.copyBucket(c, bucketKeys(), func(e element) ([]byte, error) {
			h, err := decodeHeader(e.key, e.value)
			leased[h.lease] = true
			return e.value, err
		})
	}
	for key, h := range latest {
		leased[h.lease] = true
		err = errors.Join(err, b.put(bucketKeys(), []byte(key), encodeHeader(h)))
	}
	if err != nil {
		return err
	}
	if !c.damaged(string(bucketLeases())) {
		err = b.copyBucket(c, bucketLeases(), nil)
	} else {
		err = b.newLeases(leased)
	}
	return errors.Join(err, b.counters(c.counters))
}

// newLeases gives leases of which only the numbers are known a time: an hour from when they are looked at.
func (b *builder) newLeases(ids map[int64]bool) error {
	var err error
	for id := range ids {
		if id != 0 {
			err = errors.Join(err, b.put(bucketLeases(), revisionKey(id), encodeLease(leaseRow{ttl: leaseAnew, ends: 1 << 40})))
		}
	}
	return err
}

// leaseAnew is the time to live of leases whose own is lost, in seconds: that of Kubernetes' events, which have most of them.
const leaseAnew = 3600

// setAside gives a file a second name, which stays when the first gets another file.
func setAside(path, stamp string) (string, error) {
	for n := 0; ; n++ {
		aside := path + ".damaged-" + stamp
		if n > 0 {
			aside += fmt.Sprint("-", n)
		}
		err := os.Link(path, aside)
		if err == nil {
			return aside, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("cannot set damaged file aside: %w", err)
		}
	}
}
