package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/datastore/wal"
	"github.com/mote-k8s/mote/internal/durable"
)

const (
	// lockTimeout is how long Open waits for another process to let go of the file. A killed
	// process loses its lock at once; more than this is a process that lives.
	lockTimeout = time.Second
	// lockPoll is how often it looks.
	lockPoll = 20 * time.Millisecond
	// mapSize is mapped at the start, in bytes of address space, not memory: bbolt remaps when the
	// file outgrows its map, and that waits for every running read.
	mapSize = 64 << 20
	// pageSize is fixed, because every transaction writes some seven pages: on machines with
	// pages of 16 or 64 KiB bbolt's default would wear out flash for nothing.
	pageSize = 4096
	// firstRevision is the revision of an empty store: etcd's. Kubernetes refuses revision 0.
	firstRevision = 1
	// maxRepairs bounds what one start does: a repair makes a sound file, perhaps of an older format.
	maxRepairs = 3
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

// opening is a start: it makes sure that the file is sound before bbolt sees it.
type opening struct {
	path    string
	options Options
	// file is locked; image reads it.
	file    *os.File
	image   image
	stamp   string   // of what is set aside
	repairs []Repair // those of this start, and earlier ones that were not told
	// noSnapshot is why there is none that helps.
	noSnapshot error
}

// journal is what the write-ahead log has that the file does not.
type journal struct {
	files  wal.Files
	log    *wal.Log
	found  wal.Found
	frames []frame
}

func (j *journal) close() error { return errors.Join(j.files[0].Close(), j.files[1].Close()) }

// begin locks the file at path, which is made when there is none.
func begin(path string, options Options) (*opening, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = createFile(path, options.Above)
	}
	if err != nil {
		return nil, err
	}
	o := &opening{path: path, options: options, stamp: time.Now().UTC().Format(asideTime)}
	if o.file, err = lockFile(path); err != nil {
		return nil, err
	}
	o.repairs = loadUntold(path)
	return o, nil
}

// judge returns what a sound file and its log have; an unsound one is repaired before. What only an unclean stop can have left half
// done, or half an hour without power, is looked for after one: then all of the file is read.
func (o *opening) judge() (*contents, *journal, error) {
	for range maxRepairs {
		now, roots, err := o.look(false)
		if err != nil {
			return nil, nil, err
		}
		if now != nil && now.sound() {
			j, err := o.readLog(now)
			if err != nil {
				return nil, nil, err
			}
			old := now.counters[metaFormat] < Format
			if j.clean() && now.counters[metaCeiling] == 0 && !old {
				return now, j, nil
			}
			now = o.image.inspect(roots[0], true)
			if err := now.unreadable(); err != nil {
				return nil, nil, errors.Join(err, j.close())
			}
			if now.sound() && !old {
				return now, j, nil
			}
			if err := j.close(); err != nil {
				return nil, nil, err
			}
			if now.sound() {
				if err := o.upgrade(now); err != nil {
					return nil, nil, err
				}
				continue
			}
		}
		if now, roots, err = o.look(true); err != nil {
			return nil, nil, err
		}
		if err := o.repair(now, roots); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, unsound("it is damaged again after each repair")
}

func (j *journal) clean() bool {
	return len(j.frames) == 0 && !j.found.Torn && j.found.Damage == nil
}

// look reads the newest transaction; without one it returns nil. The error is not damage.
func (o *opening) look(full bool) (*contents, []root, error) {
	info, err := o.file.Stat()
	if err != nil {
		return nil, nil, err
	}
	o.image = image{o.file, info.Size()}
	roots, err := o.image.roots()
	if errors.Is(err, ErrDamaged) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	now := o.image.inspect(roots[0], full)
	return now, roots, now.unreadable()
}

func (o *opening) readLog(c *contents) (*journal, error) {
	files, err := o.options.openLog(logPath(o.path))
	if err != nil {
		return nil, err
	}
	j := &journal{files: files}
	from, marked := uint64(c.counters[metaWAL]), c.counters[metaMarked] == 1
	j.log, j.found, err = wal.Open(files, from, marked, func(payload []byte) error {
		f, err := decodeFrame(payload)
		j.frames = append(j.frames, f)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, j.close())
	}
	return j, nil
}

// upgrade rewrites a file of formatUnsummed. Its log is read as before; the first checkpoint ends that.
func (o *opening) upgrade(c *contents) error {
	slog.Info("datastore gets a new format", "component", "datastore", "path", o.path, "from", c.counters[metaFormat], "to", Format)
	if err := build(o.draft(), func(b *builder) error { return b.copyStore(c) }); err != nil {
		return err
	}
	return o.swap()
}

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
	return errors.Join(durable.SyncDir(dirOf(o.path)), old.Close())
}

// database hands the file to bbolt, lock and all.
func (o *opening) database() (db *bbolt.DB, err error) {
	return openDB(o.path, o.file, options())
}

func openDB(path string, locked *os.File, settings *bbolt.Options) (db *bbolt.DB, err error) {
	settings.OpenFile = func(string, int, os.FileMode) (*os.File, error) {
		fd, err := unix.FcntlInt(locked.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewFile(uintptr(fd), path), err
	}
	err = withFaults(func() error {
		db, err = bbolt.Open(path, 0o600, settings)
		return err
	})
	return db, err
}

// lockFile opens a file for this process alone. The lock is bbolt's.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// Who had the lock may have put another file there.
		mine, err := f.Stat()
		now, nowErr := os.Stat(path)
		if err := errors.Join(err, nowErr); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if os.SameFile(mine, now) {
			return f, nil
		}
		f.Close()
	}
}

func lock(f *os.File) error {
	for end := time.Now().Add(lockTimeout); ; time.Sleep(lockPoll) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if time.Now().After(end) {
			return bolterrors.ErrTimeout
		}
	}
}

// createFile makes an empty store beside path and moves it there once it is whole and on the disk:
// whatever interrupts a first start, path is either absent or a store, which may have given out revisions up to above.
func createFile(path string, above int64) error {
	dir := dirOf(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := createLog(logPath(path)); err != nil {
		return err
	}
	draft := path + ".new"
	err := build(draft, func(b *builder) error {
		return b.counters(map[string]int64{metaRevision: firstRevision, metaWAL: 1, metaMarked: 1, metaCeiling: above})
	})
	if err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	// The names of the file and of its folder must be as durable as what is in the file.
	return errors.Join(durable.SyncDir(dir), durable.SyncDir(filepath.Dir(dir)))
}

func dirOf(path string) string { return filepath.Dir(path) }

// createLog makes the log's files, so that a store without them is known to have lost them. What is left of
// another store's log must not become part of this one; one that has no frame, at the most the zeros that a file grows by, is of
// a first start that was interrupted.
func createLog(path string) error {
	files, err := wal.OpenFiles(path)
	if err != nil {
		return err
	}
	_, found, err := wal.Open(files, 1, true, func([]byte) error { return errOrphanLog })
	if found.Damage != nil {
		for _, f := range files {
			unwritten, readErr := onlyZeros(f)
			if err = errors.Join(err, readErr); !unwritten {
				err = errors.Join(err, errOrphanLog)
			}
		}
	}
	if err == nil {
		_, err = wal.Create(files, 1)
	}
	return errors.Join(err, files[0].Close(), files[1].Close())
}

func onlyZeros(f wal.File) (bool, error) {
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	return len(bytes.Trim(data, "\x00")) == 0, err
}

// replaceLog puts an empty log in the place of another.
func replaceLog(path string, seq uint64) error {
	draft := path + ".new"
	files, err := emptyLog(draft)
	if err != nil {
		return err
	}
	log, err := wal.Create(files, seq)
	if err != nil {
		return errors.Join(err, files[0].Close(), files[1].Close())
	}
	if err := log.Close(); err != nil {
		return err
	}
	for i, name := range logNames(path) {
		err = errors.Join(err, os.Rename(logNames(draft)[i], name))
	}
	return errors.Join(err, durable.SyncDir(dirOf(path)))
}

func emptyLog(path string) (wal.Files, error) {
	for _, name := range logNames(path) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return wal.Files{}, err
		}
	}
	return wal.OpenFiles(path)
}

// logNames are the log's two files.
func logNames(path string) [2]string { return [2]string{path + ".0", path + ".1"} }

var (
	errNotStore    = errors.New("not a mote datastore")
	errOtherFormat = errors.New("other format")
	errOrphanLog   = errors.New("a log without its store")
	errNoLog       = errors.New("its log is missing")
)

// advise says what to do about a file that cannot be opened.
func advise(path string, err error) error {
	advice := func(text string) error {
		return fmt.Errorf("cannot open datastore %s: %s (%w)", path, text, err)
	}
	const restore = "restore a snapshot with `mote datastore snapshot restore NAME`, see `mote datastore snapshot list`"
	refused := (*refusedError)(nil)
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("cannot open datastore %s: %w", path, err)
	case errors.Is(err, bolterrors.ErrTimeout):
		return advice("another process has it open; stop the other mote or use another data directory")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return advice("the disk is full; free some space or use another data directory")
	case errors.Is(err, syscall.EROFS):
		return advice("the file system is read-only; mount it writable or use another data directory")
	case errors.Is(err, fs.ErrPermission):
		return advice("no permission; run as the owner of the data directory")
	case errors.Is(err, syscall.EIO):
		return advice("the disk cannot be read; check it, then start again, or " + restore + " on another disk")
	case errors.Is(err, errOrphanLog):
		return advice(fmt.Sprintf("it is not there, but its log %s.* is; put it back, %s, or move the log away too to begin anew", logPath(path), restore))
	case errors.Is(err, errNoLog):
		return advice("without its log it may lack what was written last; put the log back or " + restore)
	case errors.Is(err, errOtherFormat):
		return advice(fmt.Sprintf("written by another version of mote, this one reads format %d; run that version or %s", Format, restore))
	case errors.Is(err, errNotStore), errors.Is(err, ErrDamaged), errors.Is(err, wal.ErrDamaged), errors.Is(err, syscall.EISDIR):
		return advice("not a mote datastore, or a damaged one; move its folder away or " + restore)
	default:
		return fmt.Errorf("cannot open datastore %s: %w", path, err)
	}
}
