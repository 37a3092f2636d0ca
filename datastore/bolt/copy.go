package bolt

import (
	"context"
	"errors"
	"io"
	"os"

	"go.etcd.io/bbolt"
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
	err = readFile(path, true, func(c *contents) error {
		info = infoOf(c)
		return errors.Join(c.findings()...)
	})
	return info, err
}

// Peek reads what the file of a store that nobody has open says of itself, and nothing else of it.
func Peek(path string) (info Info, err error) {
	err = readFile(path, false, func(c *contents) error {
		info = infoOf(c)
		return nil
	})
	return info, err
}

func infoOf(c *contents) Info {
	return Info{c.counters[metaRevision], c.counters[metaCompacted], c.counters[metaCeiling]}
}

// readFile calls fn with what a file has if its counters are sound.
func readFile(path string, full bool, fn func(*contents) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	o := opening{path: path, file: file}
	now, _, err := o.look(full)
	switch {
	case err != nil:
		return err
	case now == nil:
		return unsound("neither header is whole")
	case now.damaged(string(bucketMeta())):
		return errors.Join(now.damage[string(bucketMeta())]...)
	}
	return fn(now)
}

// Adopt makes a Copy that was written to path a store that Open opens. Its revisions begin above floor, so that those who
// knew the store that it replaces are told to read everything again.
func Adopt(path string, floor int64) error {
	file, err := lockFile(path)
	if err != nil {
		return advise(path, err)
	}
	o := opening{path: path, file: file}
	if err := errors.Join(o.adopt(floor), o.file.Close()); err != nil {
		return advise(path, err)
	}
	return nil
}

func (o *opening) adopt(floor int64) error {
	now, _, err := o.look(true)
	if err != nil {
		return err
	}
	if now == nil || !now.sound() {
		return o.cause(now)
	}
	if now.counters[metaFormat] < Format {
		if err := o.upgrade(now); err != nil {
			return err
		}
	}
	db, err := o.database()
	if err != nil {
		return err
	}
	err = update(db, func(f *fileTx) error {
		ceiling := max(floor, getMeta(f.meta, metaRevision), getMeta(f.meta, metaCeiling))
		return errors.Join(putMeta(f.meta, metaCeiling, ceiling), putMeta(f.meta, metaMarked, 1))
	})
	return errors.Join(err, db.Close(), replaceLog(logPath(o.path), uint64(now.counters[metaWAL])))
}
