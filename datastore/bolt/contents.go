package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"go.etcd.io/bbolt"
)

// bbolt's pages have no checksums. So each record has one, the counters have one together, and for each bucket the counters
// have the sum over its entries: what a page lost, or has twice, or has otherwise than it was written, is found.

// castagnoli is the polynomial that processors compute.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// entrySum is what an entry adds to the sum over its bucket.
func entrySum(key, value []byte) uint64 {
	return 1<<32 | uint64(crc32.Update(crc32.Checksum(key, castagnoli()), castagnoli(), value))
}

// fileTx is a transaction that writes to the file and keeps the sums.
type fileTx struct {
	meta, log, keys, leases *bbolt.Bucket
	sums                    map[*bbolt.Bucket]uint64
}

func openFileTx(tx *bbolt.Tx) *fileTx {
	f := &fileTx{meta: tx.Bucket(bucketMeta()), log: tx.Bucket(bucketLog()), keys: tx.Bucket(bucketKeys()), leases: tx.Bucket(bucketLeases())}
	f.sums = map[*bbolt.Bucket]uint64{
		f.log: uint64(getMeta(f.meta, metaLogSum)), f.keys: uint64(getMeta(f.meta, metaKeysSum)), f.leases: uint64(getMeta(f.meta, metaLeasesSum)),
	}
	return f
}

// update runs fn in a transaction of db.
func update(db *bbolt.DB, fn func(*fileTx) error) error {
	return withFaults(func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			f := openFileTx(tx)
			if err := fn(f); err != nil {
				return err
			}
			return f.seal()
		})
	})
}

func (f *fileTx) put(b *bbolt.Bucket, key, value []byte) error {
	f.forget(b, key)
	f.sums[b] += entrySum(key, value)
	return b.Put(key, value)
}

// putRecords adds records to the log, in order. Nothing is there that they replace, but for a log that was read again.
func (f *fileTx) putRecords(records []*record) error {
	last, _ := f.log.Cursor().Last()
	last = bytes.Clone(last)
	var key [8]byte
	for _, rec := range records {
		binary.BigEndian.PutUint64(key[:], uint64(rec.mod))
		value := rec.stored()
		if bytes.Compare(key[:], last) <= 0 {
			f.forget(f.log, key[:])
		}
		f.sums[f.log] += entrySum(key[:], value)
		if err := f.log.Put(key[:], value); err != nil {
			return err
		}
	}
	return nil
}

func (f *fileTx) delete(b *bbolt.Bucket, key []byte) error {
	f.forget(b, key)
	return b.Delete(key)
}

func (f *fileTx) forget(b *bbolt.Bucket, key []byte) {
	if old := b.Get(key); old != nil {
		f.sums[b] -= entrySum(key, old)
	}
}

// seal writes the sums, and the checksum of all counters.
func (f *fileTx) seal() error {
	err := errors.Join(
		putMeta(f.meta, metaLogSum, int64(f.sums[f.log])),
		putMeta(f.meta, metaKeysSum, int64(f.sums[f.keys])),
		putMeta(f.meta, metaLeasesSum, int64(f.sums[f.leases])),
	)
	if err != nil {
		return err
	}
	sum := uint64(0)
	err = f.meta.ForEach(func(k, v []byte) error {
		if string(k) != metaSum {
			sum += entrySum(k, v)
		}
		return nil
	})
	return errors.Join(err, putMeta(f.meta, metaSum, int64(sum)))
}

// contents is what one transaction of a file has, as far as it can be read.
type contents struct {
	*tree
	counters map[string]int64
	// buckets are the values of the root bucket, which say where the buckets are.
	buckets map[string][]byte
	// damage is what was found in a bucket; that of "" is outside of them.
	damage map[string][]error
}

// outside, as a bucket, is the file's other pages.
const outside = ""

// inspect reads a transaction of a file and compares it with its sums. It reads the log's leaves only if full is set.
func (i image) inspect(r root, full bool) *contents {
	c := &contents{tree: i.tree(r), counters: map[string]int64{}, buckets: map[string][]byte{}, damage: map[string][]error{}}
	if c.pages < r.pages {
		c.note(outside)(unsound("the file is cut off after %d of %d pages", c.pages, r.pages))
	}
	c.walk(c.bucket, func(e element) {
		if !e.bucket {
			c.note(string(bucketMeta()))(unsound("%q is no bucket", e.key))
			return
		}
		c.buckets[string(e.key)] = slices.Clone(e.value)
	}, c.note(string(bucketMeta())))
	c.readCounters()
	if c.damaged(string(bucketMeta())) {
		return c
	}
	c.checkBucket(bucketKeys(), metaKeysSum, true, func(e element) error {
		_, err := decodeHeader(e.key, e.value)
		return err
	})
	c.checkBucket(bucketLeases(), metaLeasesSum, true, func(e element) error {
		_, _, err := decodeLease(e.key, e.value)
		return err
	})
	c.checkBucket(bucketLog(), metaLogSum, full, func(e element) error {
		if c.counters[metaFormat] < formatSums {
			_, err := decodeRecord(e.value)
			return err
		}
		_, err := decodeStored(e.key, e.value)
		return err
	})
	c.checkFree(full, c.note(outside))
	return c
}

func (c *contents) readCounters() {
	meta := string(bucketMeta())
	sum := uint64(0)
	c.each(bucketMeta(), func(e element) {
		if len(e.value) == 8 {
			c.counters[string(e.key)] = int64(binary.BigEndian.Uint64(e.value))
		}
		if string(e.key) != metaSum {
			sum += entrySum(e.key, e.value)
		}
	}, c.note(meta))
	_, summed := c.counters[metaSum]
	format := c.counters[metaFormat]
	// Of another format nothing is known, but of a number that was damaged the rest is.
	asOurs := sum - entrySum([]byte(metaFormat), revisionKey(format)) + entrySum([]byte(metaFormat), revisionKey(Format))
	switch {
	case c.damaged(meta):
	case format == formatUnsummed && !summed, format == Format && uint64(c.counters[metaSum]) == sum:
	case format == 0 && !summed:
		c.note(meta)(errNotStore)
	case format == Format || summed && uint64(c.counters[metaSum]) == asOurs:
		c.note(meta)(unsound("the counters differ from their sum"))
	default:
		c.note(meta)(fmt.Errorf("%w %d", errOtherFormat, format))
	}
}

// each calls fn with the entries of a bucket.
func (c *contents) each(bucket []byte, fn func(element), note func(error)) {
	value, ok := c.buckets[string(bucket)]
	if !ok {
		note(unsound("the bucket is missing"))
		return
	}
	c.walkBucket(value, func(e element) {
		if e.bucket {
			note(unsound("entry %x is a bucket", e.key))
			return
		}
		fn(e)
	}, note)
}

// checkBucket compares a bucket with its sum, if full; else it reads the branches only.
func (c *contents) checkBucket(bucket []byte, field string, full bool, decode func(element) error) {
	note := c.note(string(bucket))
	c.shallow = !full
	defer func() { c.shallow = false }()
	sum := uint64(0)
	c.each(bucket, func(e element) {
		sum += entrySum(e.key, e.value)
		if err := decode(e); err != nil {
			note(err)
		}
	}, note)
	if full && c.counters[metaFormat] >= formatSums && uint64(c.counters[field]) != sum {
		note(unsound("its entries differ from their sum"))
	}
}

// note returns what collects the findings of a bucket.
func (c *contents) note(bucket string) func(error) {
	return func(err error) {
		name := "bucket " + bucket
		if bucket == outside {
			name = "free pages"
		}
		c.damage[bucket] = append(c.damage[bucket], fmt.Errorf("%s: %w", name, err))
	}
}

func (c *contents) damaged(bucket string) bool { return len(c.damage[bucket]) > 0 }

// findings are all that was found.
func (c *contents) findings() []error {
	var all []error
	for _, name := range []string{outside, string(bucketMeta()), string(bucketKeys()), string(bucketLeases()), string(bucketLog())} {
		all = append(all, c.damage[name]...)
	}
	return all
}

func (c *contents) sound() bool { return len(c.findings()) == 0 }

// unreadable returns the first finding that is the disk's and says nothing about what is on it.
func (c *contents) unreadable() error {
	for _, err := range c.findings() {
		if !errors.Is(err, ErrDamaged) {
			return err
		}
	}
	return nil
}
