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

// Copy is the store at one moment in the form of its file, with all that was in memory, volatile
// keys included. Writers go on, but pages that a Copy can see are not used again: close it soon.
type Copy struct {
	tx *bbolt.Tx
	// temp is a database of its own, or nil if the Copy reads the store's file.
	temp *bbolt.DB
	// Revision is the last that it has, and Size its length in bytes.
	Revision, Size int64
}

// Copy returns the file as it would be if all that is in memory were written to it. It writes that,
// unless there is so little that a small temporary file can hold the store.
func (s *Store) Copy(ctx context.Context) (*Copy, error) {
	c, err := s.copyToTemp(ctx)
	if (c != nil || err != nil) && !durable.IsDiskFull(err) { // a disk without room for it is as one without such files
		return c, err
	}
	if err := s.Checkpoint(ctx); err != nil {
		return nil, err
	}
	return beginCopy(s.db, nil)
}

func beginCopy(db, temp *bbolt.DB) (*Copy, error) {
	tx, err := db.Begin(false)
	if err != nil {
		return nil, closedError(err)
	}
	return &Copy{tx: tx, temp: temp, Revision: format.LastRevision(tx.Bucket([]byte(format.MetaBucket))), Size: tx.Size()}, nil
}

const (
	// An idle node changes less between two snapshots than the pages that a checkpoint of the
	// changes writes. So a small store is copied to a file without a name, which is gone before the
	// kernel would write it, and the checkpoint is made there. A file and layers above these sizes,
	// in bytes, are not small.
	smallFile   = 16 << 20
	smallLayers = 1 << 20
)

// copyToTemp returns a Copy with a file of its own. It returns nil if the store is not small, its
// disk has no files without names, or a checkpoint came between.
func (s *Store) copyToTemp(ctx context.Context) (*Copy, error) {
	var cp *checkpoint
	var at checkpointID
	_, err := s.submit(ctx, func(tx *writeTx) (answer, error) {
		cp, at = s.pendingCheckpoint(tx.view), checkpointIDOf(tx.view.meta)
		return tx.refuse(nil), nil
	})
	if err != nil || cp == nil {
		return nil, err
	}
	file, err := unnamedFile(filepath.Dir(s.path))
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
		return nil, errors.Join(s.noteDamage(fmt.Errorf("copy datastore: %w", err)), db.Close())
	}
	c, err := beginCopy(db, db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return c, nil
}

// pendingCheckpoint returns the writes that v's file lacks, or nil if they or the file are too
// large. Writer goroutine only.
func (s *Store) pendingCheckpoint(v *view) *checkpoint {
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
	return &checkpoint{layer: all, revision: v.revision, compacted: v.compacted, ceiling: s.ceiling, sequence: s.wal.Seq() + 1}
}

// checkpointID identifies the last checkpoint in a file. The log's sequence alone does not: a
// checkpoint of volatile keys begins none.
type checkpointID struct{ sequence, revision, compacted int64 }

func checkpointIDOf(meta *bbolt.Bucket) checkpointID {
	c := format.CountersOf(meta)
	return checkpointID{c.LogSequence, c.Revision, c.Compacted}
}

// copyFile copies the store's file to another. It returns false if a checkpoint has changed the
// file since it was of another one.
func (s *Store) copyFile(to *os.File, at checkpointID) (same bool, err error) {
	tx, err := s.db.Begin(false)
	if err != nil {
		return false, closedError(err)
	}
	if same = checkpointIDOf(tx.Bucket([]byte(format.MetaBucket))) == at; same {
		w := &errorKeeper{Writer: to}
		if _, err = tx.WriteTo(w); w.cause != nil {
			err = w.cause
		}
	}
	return same, errors.Join(err, tx.Rollback())
}

// errorKeeper keeps the error of a write. For the first two pages of a file, the error of bbolt's
// WriteTo has only its text.
type errorKeeper struct {
	io.Writer
	cause error
}

func (w *errorKeeper) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	w.cause = err
	return n, err
}

// unnamedFile makes a file without a name in dir.
func unnamedFile(dir string) (*os.File, error) {
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
	if c.temp != nil {
		err = errors.Join(err, c.temp.Close())
	}
	return err
}
