package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/disk"
	"github.com/mote-k8s/mote/internal/layout"
)

// minFree is the free space that the first start needs, in bytes: for the unpacked programs (some
// 25 MiB), keys, an empty state and a reserve.
const minFree = 64 << 20

// Lock is the exclusive right to use a data directory. The running mote holds an open file
// description lock on the file "lock" in the directory. The kernel releases it whichever way the
// process ends. The file contains the process ID, for people.
type Lock struct {
	file *os.File
	dir  string
	made bool // lockDataDir created the directory
}

// lockDataDir checks the disk of directory dir, creates dir if necessary, and locks it. If another
// process has the lock, the error names it.
func lockDataDir(dir string) (*Lock, error) {
	if err := checkSpace(dir); err != nil {
		return nil, err
	}
	_, err := os.Stat(dir)
	made := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, DiskHint(fmt.Errorf("make data directory: %w", err))
	}
	l, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	l.made = made
	if err := l.writePID(); err != nil {
		l.undo()
		return nil, DiskHint(fmt.Errorf("lock data directory: %w", err))
	}
	return l, nil
}

// takeLock takes the lock of dir. It works on a full disk, where reset is needed most.
func takeLock(dir string) (*Lock, error) {
	path := layout.Data(dir).Lock()
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, DiskHint(fmt.Errorf("lock data directory: %w", err))
		}
		l := &Lock{file: f, dir: dir}
		current, err := l.claim()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if current {
			return l, nil
		}
		f.Close() // a reset removed the file after it was opened and before it was locked
	}
}

// claim takes the lock and reports whether the file is still the one that other processes would
// open.
func (l *Lock) claim() (current bool, err error) {
	err = unix.FcntlFlock(l.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EAGAIN) {
		return false, inUse(l.dir, pidIn(l.file.Name()))
	}
	if err != nil {
		return false, fmt.Errorf("lock data directory %s: %w", l.dir, err)
	}
	own, err := l.file.Stat()
	if err != nil {
		return false, fmt.Errorf("lock data directory: %w", err)
	}
	if named, err := os.Stat(l.file.Name()); err != nil || !os.SameFile(own, named) {
		return false, nil
	}
	// The process ID of a previous holder may belong to another process by now.
	if err := l.file.Truncate(0); err != nil {
		return false, DiskHint(fmt.Errorf("lock data directory: %w", err))
	}
	return true, nil
}

// undo releases the lock and removes the files that it made, unless the directory is in use
// already. It reports whether it removed all of them.
func (l *Lock) undo() bool {
	defer l.Close()
	entries, err := os.ReadDir(l.dir)
	if err != nil || len(entries) != 1 || os.Remove(l.file.Name()) != nil {
		return false
	}
	if l.made {
		_ = os.Remove(l.dir) // another program may have put a file there since
	}
	return true
}

func (l *Lock) writePID() error {
	_, err := l.file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// Close releases the data directory.
func (l *Lock) Close() error { return l.file.Close() }

// checkSpace refuses a first start that would run out of disk space halfway. It allows later
// starts: the kubelet may then free space, which nothing else would do.
func checkSpace(dir string) error {
	if _, err := os.Stat(layout.Data(dir).Datastore()); err == nil {
		return nil
	}
	on, err := disk.Of(dir) // dir itself may not exist yet
	if err != nil {
		return err
	}
	if on.Free < minFree {
		return fmt.Errorf("data directory %s has %d MiB free and mote needs %d MiB to start; free some or choose another with --data-dir", dir, on.Free>>20, minFree>>20)
	}
	return nil
}

// dying is the time for which a lock can survive the end of a killed mote: a child that mote was
// just starting holds its files until it executes another program.
const dying = 5 * time.Second

// Holder returns the process ID of the mote that runs on the data directory, or 0.
func (m *Machine) Holder() (pid int, err error) { return holderOf(m.DataDir) }

// holderOf returns the process ID of the mote that runs on data directory dir, or 0 when none does.
// If that mote was killed a moment ago, holderOf waits for its lock to end.
func holderOf(dir string) (pid int, err error) {
	for end := time.Now().Add(dying); ; time.Sleep(10 * time.Millisecond) {
		pid, err = lockHolder(dir)
		if err != nil || pid == 0 || syscall.Kill(pid, 0) != syscall.ESRCH || time.Now().After(end) {
			return pid, err
		}
	}
}

func lockHolder(dir string) (int, error) {
	path := layout.Data(dir).Lock()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, DiskHint(fmt.Errorf("look at the lock: %w", err))
	}
	defer f.Close()
	// Query the lock without taking it: a query must not keep a mote from starting.
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return 0, fmt.Errorf("look at the lock %s: %w", path, err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	pid, err := strconv.Atoi(pidIn(path))
	if err != nil {
		return 0, fmt.Errorf("the lock %s is held, but names no pid", path)
	}
	return pid, nil
}

func inUse(dir, pid string) error {
	return fmt.Errorf("data directory %s is in use by mote (pid %s); \"mote stop\" it or choose another with --data-dir", dir, pid)
}

// pidIn returns the process ID in a lock file, or "unknown" in the moment between locking and
// writing.
func pidIn(path string) string {
	data, err := os.ReadFile(path)
	if pid := strings.TrimSpace(string(data)); err == nil && pid != "" {
		return pid
	}
	return "unknown"
}

// DiskHint adds the remedy to an error of a full, read-only or foreign disk, unless the error
// contains it already.
func DiskHint(err error) error {
	switch {
	case err == nil || strings.Contains(err.Error(), "--data-dir"):
		return err
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; remount it for writing or choose another with --data-dir", err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w; free some space or choose another with --data-dir", err)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w; choose another with --data-dir", err)
	}
	return err
}
