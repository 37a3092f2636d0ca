package rescue

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/internal/durable"
)

// buildStep is the number of bytes that go into a new file in one transaction.
const buildStep = 4 << 20

// builder fills a new file, in transactions of some buildStep bytes.
type builder struct {
	db    *bbolt.DB
	tx    *bbolt.Tx
	file  *format.Tx
	bytes int
}

// build makes a store's file at path, with the entries that fill puts into it. It replaces a file
// that exists. The file is on the disk when build returns.
func build(path string, fill func(*builder) error) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := format.CreateDB(path)
	if err != nil {
		return err
	}
	b := &builder{db: db}
	err = b.begin()
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

func (b *builder) begin() (err error) {
	if b.tx, err = b.db.Begin(true); err != nil {
		return err
	}
	b.bytes = 0
	b.file, err = format.OpenTx(b.tx)
	return err
}

func (b *builder) commit() error {
	if err := b.file.Seal(); err != nil {
		return err
	}
	return b.tx.Commit()
}

// put adds an entry to a bucket that is not the meta bucket.
func (b *builder) put(bucket string, key, value []byte) error {
	if b.bytes += len(key) + len(value); b.bytes > buildStep {
		if err := errors.Join(b.commit(), b.begin()); err != nil {
			return err
		}
	}
	return b.bucket(bucket).Put(key, value)
}

func (b *builder) bucket(name string) *format.Bucket {
	switch name {
	case format.LogBucket:
		return b.file.Log
	case format.KeysBucket:
		return b.file.Keys
	default:
		return b.file.Leases
	}
}

// putRecord adds a record to the log and makes it the latest version of its key.
func (b *builder) putRecord(rec *format.Record) error {
	return errors.Join(
		b.put(format.LogBucket, format.RevisionKey(rec.Mod), rec.Encoded()),
		b.put(format.KeysBucket, rec.Key, rec.Header.Encode()),
	)
}

// setCounters sets all counters except the sums and the format, which are the new file's own.
func (b *builder) setCounters(c format.Counters) {
	own := b.file.Counters
	c.Format = format.Version
	c.LogSum, c.KeysSum, c.LeasesSum = own.LogSum, own.KeysSum, own.LeasesSum
	b.file.Counters = c
}

// copyBucket puts the entries of a bucket of c into b, with the values that change returns, if it
// is not nil.
func (b *builder) copyBucket(c *contents, bucket string, change func(format.Element) ([]byte, error)) error {
	var failed error
	c.reread().each(bucket, func(e format.Element) {
		value := e.Value
		if failed == nil && change != nil {
			value, failed = change(e)
		}
		if failed == nil {
			failed = b.put(bucket, e.Key, value)
		}
	}, func(err error) { failed = errors.Join(failed, err) })
	return failed
}

// copyStore puts all that c has into b. It rebuilds damaged parts: the index from the log, the
// leases from the index. Nothing else may be damaged.
func (b *builder) copyStore(c *contents) error {
	latest, err := b.copyLog(c)
	if err != nil {
		return err
	}
	leased := map[int64]bool{}
	if !c.damaged(format.KeysBucket) {
		err = b.copyBucket(c, format.KeysBucket, func(e format.Element) ([]byte, error) {
			h, err := format.DecodeHeader(e.Key, e.Value)
			leased[h.Lease] = true
			return e.Value, err
		})
	}
	for key, h := range latest {
		leased[h.Lease] = true
		err = errors.Join(err, b.put(format.KeysBucket, []byte(key), h.Encode()))
	}
	if err != nil {
		return err
	}
	err = b.copyLeases(c, leased)
	b.setCounters(c.counters)
	return err
}

// copyLog puts the log of c into b. If the index of c is damaged, it returns the latest header of
// each key.
func (b *builder) copyLog(c *contents) (latest map[string]format.Header, err error) {
	latest = map[string]format.Header{}
	return latest, b.copyBucket(c, format.LogBucket, func(e format.Element) ([]byte, error) {
		if c.summed() && !c.damaged(format.KeysBucket) {
			return e.Value, nil
		}
		rec, err := c.record(e)
		if !c.summed() {
			return rec.Encoded(), err
		}
		latest[string(rec.Key)] = rec.Header
		return e.Value, err
	})
}

// leaseAnew is the time to live of leases whose own is lost, in seconds: that of Kubernetes'
// events, which have most of the leases.
const leaseAnew = 3600

// copyLeases puts the leases of c into b. If those are damaged, it makes leases with the numbers in
// leased, which begin anew when they are read.
func (b *builder) copyLeases(c *contents, leased map[int64]bool) error {
	if !c.damaged(format.LeasesBucket) {
		return b.copyBucket(c, format.LeasesBucket, nil)
	}
	var err error
	for id := range leased {
		if id != 0 {
			row := format.Lease{TTL: leaseAnew, Ends: 1 << 40}
			err = errors.Join(err, b.put(format.LeasesBucket, format.RevisionKey(id), row.Encode()))
		}
	}
	return err
}

// upgrade rewrites a file of an older format. Its log is read as before; the first checkpoint ends
// that.
func (o *opening) upgrade(c *contents) error {
	slog.Info("datastore gets a new format", "component", "datastore", "path", o.path, "from", c.counters.Format, "to", format.Version)
	if err := build(o.draft(), func(b *builder) error { return b.copyStore(c) }); err != nil {
		return err
	}
	return o.swap()
}

// draft is the path of a new file until it is whole.
func (o *opening) draft() string { return o.path + ".new" }

// swap puts the draft in the file's place. At each moment there is a whole file, which is locked.
func (o *opening) swap() error {
	draft, err := lockFile(o.draft())
	if err != nil {
		return err
	}
	if err := os.Rename(o.draft(), o.path); err != nil {
		return errors.Join(err, draft.Close())
	}
	old := o.file
	o.file = draft
	return errors.Join(syncDirOf(o.path), old.Close())
}

// syncDirOf makes the names in the directory of path durable.
func syncDirOf(path string) error { return durable.SyncDir(filepath.Dir(path)) }
