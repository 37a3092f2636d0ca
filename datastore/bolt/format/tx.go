package format

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

const (
	// mapSize is the amount of address space, not memory, that bbolt maps at the start, in bytes.
	// It maps the file anew when the file outgrows that, and then waits for every running read.
	mapSize = 64 << 20
	// PageSize is the size of the file's pages in bytes. It is fixed, because every transaction
	// writes some seven pages: on machines with pages of 16 or 64 KiB bbolt's default would wear
	// out flash.
	PageSize = 4096
)

// Tx is a bbolt transaction that writes to a store's file. Counters may be changed until the
// transaction is sealed; the sums in them are kept by the buckets.
type Tx struct {
	Counters
	Log, Keys, Leases *Bucket
	meta              *bbolt.Bucket
}

// Bucket is a bucket of a writing transaction. Put and Delete keep the sum over its entries.
type Bucket struct {
	*bbolt.Bucket
	sum *uint64
}

// OpenTx returns the Tx of a writing bbolt transaction. Its buckets are made if they are missing.
// The caller must Seal it before the commit.
func OpenTx(tx *bbolt.Tx) (*Tx, error) {
	open := func(name string) *bbolt.Bucket { return tx.Bucket([]byte(name)) }
	if open(MetaBucket) == nil {
		for _, name := range []string{MetaBucket, LogBucket, KeysBucket, LeasesBucket} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return nil, err
			}
		}
	}
	t := &Tx{meta: open(MetaBucket)}
	t.Counters = CountersOf(t.meta)
	t.Log = &Bucket{open(LogBucket), &t.LogSum}
	t.Keys = &Bucket{open(KeysBucket), &t.KeysSum}
	t.Leases = &Bucket{open(LeasesBucket), &t.LeasesSum}
	return t, nil
}

// Update runs fn in a transaction of db and commits it with its counters and sums, unless fn fails.
func Update(db *bbolt.DB, fn func(*Tx) error) error {
	return CatchFaults(func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			t, err := OpenTx(tx)
			if err != nil {
				return err
			}
			if err := fn(t); err != nil {
				return err
			}
			return t.Seal()
		})
	})
}

// Seal writes the counters, sums included.
func (t *Tx) Seal() error { return t.Counters.put(t.meta) }

// Put adds an entry, or replaces it.
func (b *Bucket) Put(key, value []byte) error {
	b.subtract(key)
	*b.sum += EntrySum(key, value)
	return b.Bucket.Put(key, value)
}

// Delete removes an entry, which need not be there.
func (b *Bucket) Delete(key []byte) error {
	b.subtract(key)
	return b.Bucket.Delete(key)
}

// subtract takes an entry that is about to change out of the sum.
func (b *Bucket) subtract(key []byte) {
	if old := b.Get(key); old != nil {
		*b.sum -= EntrySum(key, old)
	}
}

// PutRecords adds records to the log, in the order of their revisions. They are behind those that
// are there, except after a crash: then some are written once more.
func (t *Tx) PutRecords(records []*Record) error {
	last, _ := t.Log.Cursor().Last()
	last = bytes.Clone(last)
	var key [8]byte
	for _, rec := range records {
		binary.BigEndian.PutUint64(key[:], uint64(rec.Mod))
		value := rec.Encoded()
		if bytes.Compare(key[:], last) <= 0 {
			t.Log.subtract(key[:])
		}
		t.LogSum += EntrySum(key[:], value)
		if err := t.Log.Bucket.Put(key[:], value); err != nil {
			return err
		}
	}
	return nil
}

func options() *bbolt.Options {
	return &bbolt.Options{
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mapSize,
		PageSize:        PageSize,
		NoStatistics:    true,
	}
}

// lockTimeout limits bbolt's wait for the lock of a file whose lock the caller holds already.
const lockTimeout = time.Second

// OpenDB opens a file that the caller has locked with flock(2). The database shares the lock and
// has a descriptor of its own; path is for messages. A page that makes no sense is an ErrDamaged.
func OpenDB(path string, locked *os.File, readOnly bool) (db *bbolt.DB, err error) {
	o := options()
	o.Timeout, o.ReadOnly = lockTimeout, readOnly
	o.OpenFile = func(string, int, os.FileMode) (*os.File, error) {
		fd, err := unix.FcntlInt(locked.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewFile(uintptr(fd), path), err
	}
	err = CatchFaults(func() error {
		db, err = bbolt.Open(path, 0o600, o)
		return err
	})
	return db, err
}

// CreateDB makes a file, or opens one, that nobody else uses. Nothing is on the disk before the
// caller calls Sync.
func CreateDB(path string) (*bbolt.DB, error) {
	o := options()
	o.Timeout, o.NoSync = lockTimeout, true
	return bbolt.Open(path, 0o600, o)
}

// CatchFaults calls fn. It returns as an ErrDamaged the panic of bbolt when a page makes no sense
// to it, and the fault that the kernel raises when a page of the map cannot be read.
func CatchFaults(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			slog.Error("page of the datastore cannot be used", "component", "datastore", "cause", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return fn()
}
