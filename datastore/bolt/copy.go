package bolt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/internal/durable"
)

// Copy is the store at one moment in the form of its file: what was in memory is in it, volatile keys too. Writers
// go on, but pages that it can see are not used again, so it must be closed soon.
type Copy struct {
	tx *bbolt.Tx
	// aside is a file of its own, if it is not the store's.
	aside *bbolt.DB
	// Revision is the last that it has, and Size its length in bytes.
	Revision, Size int64
}

// Copy returns the file as it would be if all that is in memory were written to it; and writes that, unless there is little of it.
func (s *Store) Copy(ctx context.Context) (*Copy, error) {
	c, err := s.copyAside(ctx)
	if (c != nil || err != nil) && !durable.IsDiskFull(err) { // a disk without room for it is as one without such files
		return c, err
	}
	if err := s.Checkpoint(ctx); err != nil {
		return nil, err
	}
	return beginCopy(s.db, nil)
}

func beginCopy(db, aside *bbolt.DB) (*Copy, error) {
	tx, err := db.Begin(false)
	if err != nil {
		return nil, closedError(err)
	}
	return &Copy{tx: tx, aside: aside, Revision: format.LastRevision(tx.Bucket([]byte(format.MetaBucket))), Size: tx.Size()}, nil
}

// What an idle node changes between two snapshots is less than the pages that a checkpoint of it writes. So a small store is copied
// to a file without a name, which is gone before the kernel would write it, and the checkpoint is made there.
const (
	smallFile   = 16 << 20
	smallLayers = 1 << 20
)

// copyAside returns nil if the store is not small, its disk has no files without names, or a checkpoint came between.
func (s *Store) copyAside(ctx context.Context) (*Copy, error) {
	var cp *checkpoint
	var at position
	_, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		cp, at = s.remains(tx.view), positionOf(tx.view.meta)
		return tx.refuse(nil), nil
	})
	if err != nil || cp == nil {
		return nil, err
	}
	file, err := unnamed(filepath.Dir(s.path))
	if err != nil {
		return nil, nil
	}
	defer file.Close()
	if same, err := s.copyFile(file, at); !same || err != nil {
		return nil, err
	}
	db, err := format.OpenDB(s.path+" (copy)", file, false)
	if err != nil {
		return nil, err
	}
	db.NoSync, db.NoGrowSync = true, true
	if err := cp.put(db); err != nil {
		return nil, errors.Join(s.damage(fmt.Errorf("copy datastore: %w", err)), db.Close())
	}
	c, err := beginCopy(db, db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return c, nil
}

// remains is a checkpoint of what the file of a view lacks, if that is little. It is the writer's.
func (s *Store) remains(v *view) *checkpoint {
	bytes := 0
	for _, l := range v.layers {
		bytes += l.size()
	}
	if bytes > smallLayers || v.tx.Size() > smallFile {
		return nil
	}
	all := newLayer()
	for i := len(v.layers) - 1; i >= 0; i-- {
		l := v.layers[i]
		l.mu.RLock()
		all.add(l.log, l.leases)
		l.mu.RUnlock()
	}
	return &checkpoint{layer: all, revision: v.revision, compacted: v.compacted, ceiling: s.ceiling, wal: s.wal.Seq() + 1}
}

// position tells a file from that of another checkpoint. The log's sequence alone does not: one of volatile keys begins none.
type position struct{ wal, revision, compacted int64 }

func positionOf(meta *bbolt.Bucket) position {
	c := format.CountersOf(meta)
	return position{c.LogSequence, c.Revision, c.Compacted}
}

// copyFile copies the store's file, unless a checkpoint has changed it since it was at a position.
func (s *Store) copyFile(to *os.File, at position) (same bool, err error) {
	tx, err := s.db.Begin(false)
	if err != nil {
		return false, closedError(err)
	}
	if same = positionOf(tx.Bucket([]byte(format.MetaBucket))) == at; same {
		w := &causeKeeper{Writer: to}
		if _, err = tx.WriteTo(w); w.cause != nil {
			err = w.cause
		}
	}
	return same, errors.Join(err, tx.Rollback())
}

// causeKeeper keeps the error of a write, of which bbolt's WriteTo has but the text for a file's first two pages.
type causeKeeper struct {
	io.Writer
	cause error
}

func (w *causeKeeper) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.cause = err
	return n, err
}

// unnamed makes a file without a name.
func unnamed(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// WriteTo implements io.WriterTo. It may be called once.
func (c *Copy) WriteTo(w io.Writer) (int64, error) { return c.tx.WriteTo(w) }

// Close lets the store use its pages again.
func (c *Copy) Close() error {
	err := c.tx.Rollback()
	if c.aside != nil {
		err = errors.Join(err, c.aside.Close())
	}
	return err
}
