// Package rescue checks whether the files of a bolt store are sound, and repairs them: its input is
// files, its output a sound file, its log and a list of repairs.
//
// It owns the files until the engine has them: their lock, their first version, the change to a
// newer format, the files that are set aside, and the list of unreported repairs. It knows the
// layout (package format) and the log's files (package wal), and nothing of the engine (package
// bolt), which serves the files that Open returns.
//
// A start goes through these steps; those in brackets only if they are needed:
//
//	[create] -> lock -> examine ->
//		[repair by the first way that is possible -> examine again] -> read the log
//
// A start examines the counters, all branches, the index and the leases; after an unclean stop all
// of the file. repair lists the ways of repair and what each loses.
//
// Invariants:
//   - bbolt sees a file only after Image has found it sound.
//   - A file is replaced by a whole one in one rename; the damaged one keeps a second name.
//   - A repair that would lose data whose loss could not be reported is refused, and the files stay
//     unchanged. The same holds for data that cannot be read: the next read may succeed.
//   - Every error says what to do.
//
// The other entries are for a store that no process has open: Examine reads all of it and its log,
// Inspect its file alone, Peek its counters; Adopt makes a store of a snapshot's file. Check
// examines a running store. All functions may be called from any goroutine; a Files is for one at a
// time.
package rescue

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/wal"
)

// RevisionGap is the jump of revisions when it is unknown how many were given out. It is more than
// both files of the log can have promised, and more than are given out between a snapshot and a
// repair or a restore.
const RevisionGap = 1 << 30

// Options are the options of a start. The zero value is the default.
type Options struct {
	// OpenLog opens the log's two files, whose names begin with path. They must be there. The
	// default is the files beside the store; tests have disks that break.
	OpenLog func(path string) (wal.Files, error)
	// Restore returns the file of the newest good snapshot and its name. Open calls it only if the
	// file is so damaged that data would be lost. Nil, or no reader, means that there is none.
	Restore func() (file io.ReadCloser, name string, err error)
	// Above is a revision above which a new store begins, with its history compacted. A store that
	// is there already is left as it is.
	Above int64
}

// Files are the files of a store. The file is sound and locked; the log's frames are not in it yet.
type Files struct {
	// File is the bbolt file, for reading. Closing it does not release the lock of a DB.
	File *os.File
	// Counters are those of the file's last commit.
	Counters format.Counters
	// Log continues after Frames. It is nil if the log is damaged: see ReplaceLog.
	Log *wal.Log
	// Frames are the frames that the log has and the file lacks, in order, up to the first damage.
	Frames []format.Frame
	// State describes the log as it was read.
	State wal.Found
	// Repairs are those of this start, and earlier ones that were not reported, the oldest first.
	Repairs []Repair

	path     string
	stamp    string // in the names of files that are set aside
	logFiles wal.Files
}

// Open locks the store at path and makes it sound. It creates a missing store with its directory.
// The error says what to do; the files are closed then.
func Open(path string, options Options) (*Files, error) {
	o, err := begin(path, options)
	if err != nil {
		return nil, Advise(path, err)
	}
	now, log, err := o.makeSound()
	if err != nil {
		return nil, errors.Join(Advise(path, err), o.file.Close())
	}
	return &Files{
		File: o.file, Counters: now.counters, Log: log.log, Frames: log.frames, State: log.found, Repairs: o.repairs,
		path: path, stamp: o.stamp, logFiles: log.files,
	}, nil
}

// OpenDB opens the file as a bbolt database, which shares the lock.
func (f *Files) OpenDB() (*bbolt.DB, error) { return format.OpenDB(f.path, f.File, false) }

// Close closes the files of a store that is not served after all.
func (f *Files) Close() error {
	return errors.Join(f.File.Close(), f.logFiles[0].Close(), f.logFiles[1].Close())
}

// opening is a start in progress.
type opening struct {
	path    string
	options Options
	// file is locked; image reads it.
	file  *os.File
	image format.Image
	// stamp is in the names of files that are set aside.
	stamp string
	// repairs are those of this start, and earlier ones that were not reported.
	repairs []Repair
	// snapshotErr is the reason why no snapshot can help.
	snapshotErr error
}

// begin locks the file at path, which it makes if there is none.
func begin(path string, options Options) (*opening, error) {
	if options.OpenLog == nil {
		options.OpenLog = openLog
	}
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = create(path, options.Above)
	}
	if err != nil {
		return nil, err
	}
	o := &opening{path: path, options: options, stamp: time.Now().UTC().Format(asideTime)}
	if o.file, err = lockFile(path); err != nil {
		return nil, err
	}
	o.repairs = loadUnreported(path)
	return o, nil
}

// maxRepairs limits the repairs of one start. One repair makes a sound file, perhaps of an older
// format.
const maxRepairs = 3

// makeSound returns the contents of a sound file and its log. It repairs the file first if
// necessary.
func (o *opening) makeSound() (*contents, *journal, error) {
	for range maxRepairs {
		now, commits, err := o.look(false)
		if err != nil {
			return nil, nil, err
		}
		if now != nil && now.sound() {
			log, rewritten, err := o.verify(now, commits[0])
			if log != nil || err != nil {
				return now, log, err
			}
			if rewritten {
				continue
			}
		}
		if now, commits, err = o.look(true); err != nil {
			return nil, nil, err
		}
		if err := o.repair(now, commits); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, format.Damagef("it is damaged again after each repair")
}

// verify returns the log of a file whose branches, index and leases are sound. It reads all of the
// file first after an unclean stop, because only that can have left an incomplete write, or after
// half an hour without power. Without a log, the file is damaged or was rewritten in the current
// format.
func (o *opening) verify(now *contents, newest format.Commit) (log *journal, rewritten bool, err error) {
	if log, err = o.readLog(now); err != nil {
		return nil, false, err
	}
	old := now.counters.Format < format.Version
	if log.clean() && now.counters.Ceiling == 0 && !old {
		return log, false, nil
	}
	all := inspect(o.image, newest, true)
	if err := all.unreadable(); err != nil {
		return nil, false, errors.Join(err, log.close())
	}
	if all.sound() && !old {
		return log, false, nil
	}
	if err := log.close(); err != nil || !all.sound() {
		return nil, false, err
	}
	return nil, true, o.upgrade(all)
}

// look reads the newest commit of the file; it returns nil if no meta page is whole. The error is
// not damage.
func (o *opening) look(full bool) (*contents, []format.Commit, error) {
	info, err := o.file.Stat()
	if err != nil {
		return nil, nil, err
	}
	o.image = format.Image{File: o.file, Size: info.Size()}
	commits, err := o.image.Commits()
	if errors.Is(err, format.ErrDamaged) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	now := inspect(o.image, commits[0], full)
	return now, commits, now.unreadable()
}
