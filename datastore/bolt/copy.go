package bolt

import (
	"context"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/wal"
)

// Copy is the store at one moment in the form of its file: what was in memory is in it, volatile keys too. Writers
// go on, but pages that it can see are not used again, so it must be closed soon.
type Copy struct {
	tx *bbolt.Tx
	// Revision is the last that it has, and Size its length in bytes.
	Revision, Size int64
}

// Copy writes what is in memory to the file and returns the file as it then is.
func (s *Store) Copy(ctx context.Context) (*Copy, error) {
	if err := s.Checkpoint(ctx); err != nil {
		return nil, err
	}
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, closedError(err)
	}
	return &Copy{tx: tx, Revision: getMeta(tx.Bucket(bucketMeta()), metaRevision), Size: tx.Size()}, nil
}

// WriteTo implements io.WriterTo. It may be called once.
func (c *Copy) WriteTo(w io.Writer) (int64, error) { return c.tx.WriteTo(w) }

// Close lets the store use its pages again.
func (c *Copy) Close() error { return c.tx.Rollback() }

// Info is what a store's file says of itself.
type Info struct {
	Revision, Compacted int64
	// Ceiling is above all revisions that may have been given out since; 0 is none.
	Ceiling int64
}

// Inspect reads the whole file of a store that nobody has open, and compares it with the format's promises. Its
// log is not looked at: a Copy has none.
func Inspect(path string) (info Info, err error) {
	defer func() {
		if p := recover(); p != nil { // as bbolt says that a page makes no sense
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	err = readFile(path, func(tx *bbolt.Tx) error {
		info = infoOf(tx)
		return errors.Join(check(tx)...)
	})
	return info, err
}

// Peek reads what the file of a store that nobody has open says of itself, and nothing else of it.
func Peek(path string) (info Info, err error) {
	err = readFile(path, func(tx *bbolt.Tx) error {
		info = infoOf(tx)
		return nil
	})
	return info, err
}

func infoOf(tx *bbolt.Tx) Info {
	meta := tx.Bucket(bucketMeta())
	return Info{getMeta(meta, metaRevision), getMeta(meta, metaCompacted), getMeta(meta, metaCeiling)}
}

func readFile(path string, fn func(*bbolt.Tx) error) error {
	if err := checkLength(path); err != nil {
		return err
	}
	o := options()
	o.ReadOnly = true
	db, err := bbolt.Open(path, 0o600, o)
	if err != nil {
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		if err := checkFormat(tx); err != nil {
			return err
		}
		return fn(tx)
	})
	return errors.Join(err, db.Close())
}

// Adopt makes a Copy that was written to path a store that Open opens. Its revisions begin above floor, so that those who
// knew the store that it replaces are told to read everything again.
func Adopt(path string, floor int64) error {
	db, err := openSound(path)
	if err != nil {
		return advise(path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := checkFormat(tx); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta())
		return putMeta(meta, metaCeiling, max(floor, getMeta(meta, metaRevision), getMeta(meta, metaCeiling)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return advise(path, err)
	}
	files, err := wal.OpenFiles(logPath(path))
	if err != nil {
		return err
	}
	for _, f := range files {
		err = errors.Join(err, f.Sync(), f.Close())
	}
	return err
}
