package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/mote-k8s/mote/datastore/wal"
)

const (
	// lockTimeout is how long Open waits for another process to let go of the file. A killed
	// process loses its lock at once; more than this is a process that lives.
	lockTimeout = time.Second
	// mapSize is mapped at the start, in bytes of address space, not memory: bbolt remaps when the
	// file outgrows its map, and that waits for every running read.
	mapSize = 64 << 20
	// pageSize is fixed, because every transaction writes some seven pages: on machines with
	// pages of 16 or 64 KiB bbolt's default would wear out flash for nothing.
	pageSize = 4096
	// firstRevision is the revision of an empty store: etcd's. Kubernetes refuses revision 0.
	firstRevision = 1
)

func options() *bbolt.Options {
	return &bbolt.Options{
		Timeout:         lockTimeout,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mapSize,
		PageSize:        pageSize,
		NoStatistics:    true,
	}
}

// openFile opens the bbolt file at path, and makes it when there is none: as a store that may have given out
// revisions up to above.
func openFile(path string, above int64) (*bbolt.DB, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createFile(path, above)
	}
	if err != nil {
		return nil, advise(path, err)
	}
	db, err := openSound(path)
	if err != nil {
		return nil, advise(path, err)
	}
	if err := db.View(checkFormat); err != nil {
		return nil, advise(path, errors.Join(err, db.Close()))
	}
	return db, nil
}

// openSound opens a file that is there. Of a damaged one bbolt says so by a panic, and of one that
// was cut off by a memory fault that would end the process: its length is compared beforehand.
func openSound(path string) (db *bbolt.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	if err := checkLength(path); err != nil {
		return nil, err
	}
	return bbolt.Open(path, 0o600, options())
}

// checkLength reads the header only: a read-only bbolt looks no further.
func checkLength(path string) error {
	o := options()
	o.ReadOnly = true
	db, err := bbolt.Open(path, 0o600, o)
	if err != nil {
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		info, err := os.Stat(path)
		if err == nil && info.Size() < tx.Size() {
			err = fmt.Errorf("%w: %d bytes of %d", errDamaged, info.Size(), tx.Size())
		}
		return err
	})
	return errors.Join(err, db.Close())
}

// createFile makes an empty store beside path and moves it there once it is whole and on the disk:
// whatever interrupts a first start, path is either absent or a store.
func createFile(path string, above int64) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := createLog(logPath(path)); err != nil {
		return err
	}
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(draft, 0o600, options())
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(func(tx *bbolt.Tx) error { return initialise(tx, above) }), db.Close()); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	// The names of the file and of its folder must be as durable as what is in the file.
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// createLog makes the log's files, so that a store without them is known to have lost them. What is left of
// another store's log must not become part of this one.
func createLog(path string) error {
	files, err := wal.OpenFiles(path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if size, sizeErr := f.Size(); sizeErr != nil || size > 0 {
			err = errors.Join(err, sizeErr, errOrphanLog)
		}
		err = errors.Join(err, f.Close())
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func initialise(tx *bbolt.Tx, above int64) error {
	for _, name := range buckets() {
		if _, err := tx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta())
	return errors.Join(putMeta(meta, metaFormat, Format), putMeta(meta, metaRevision, firstRevision), putMeta(meta, metaWAL, 1),
		putMeta(meta, metaCeiling, above))
}

var (
	errNotStore    = errors.New("not a mote datastore")
	errDamaged     = errors.New("damaged file")
	errOtherFormat = errors.New("other format")
	errOrphanLog   = errors.New("a log without its store")
)

func checkFormat(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta())
	if meta == nil {
		return errNotStore
	}
	switch format := getMeta(meta, metaFormat); format {
	case Format:
	case 0:
		return errNotStore
	default:
		return fmt.Errorf("%w %d", errOtherFormat, format)
	}
	for _, name := range buckets() {
		if tx.Bucket(name) == nil {
			return fmt.Errorf("%w: bucket %s is missing", errDamaged, name)
		}
	}
	return nil
}

// advise says what to do about a file that cannot be opened.
func advise(path string, err error) error {
	advice := func(text string) error {
		return fmt.Errorf("cannot open datastore %s: %s (%w)", path, text, err)
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return advice("another process has it open; stop the other mote or use another data directory")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return advice("the disk is full; free some space or use another data directory")
	case errors.Is(err, syscall.EROFS):
		return advice("the file system is read-only; mount it writable or use another data directory")
	case errors.Is(err, fs.ErrPermission):
		return advice("no permission; run as the owner of the data directory")
	case errors.Is(err, errOrphanLog):
		return advice(fmt.Sprintf("it is not there, but its log %s.* is; put it back, or move the log away too to begin anew", logPath(path)))
	case errors.Is(err, errOtherFormat):
		return advice(fmt.Sprintf("written by another version of mote, this one reads format %d; run that version or restore a backup", Format))
	case errors.Is(err, errDamaged), errors.Is(err, errNotStore), errors.Is(err, wal.ErrDamaged), errors.Is(err, errDamagedFrame), errors.Is(err, bolterrors.ErrInvalid),
		errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum),
		errors.Is(err, syscall.EISDIR):
		return advice("not a mote datastore, or a damaged one; move its folder away or restore a backup")
	default:
		return fmt.Errorf("cannot open datastore %s: %w", path, err)
	}
}
