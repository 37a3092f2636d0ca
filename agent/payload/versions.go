package payload

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// folderName matches the names that Unpack gives to the directories of versions. mote removes
// nothing else below root.
var folderName = regexp.MustCompile(`^[0-9a-f]{64}$`)

// holdShared marks the directory dir as used until the returned descriptor is closed. A directory
// that is being removed counts as missing.
func holdShared(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	err = unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return -1, fs.ErrNotExist
	}
	return -1, &fs.PathError{Op: "lock", Path: dir, Err: err}
}

// others reports whether root holds a directory of another version than own.
func others(root, own string) bool {
	entries, err := os.ReadDir(root)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if e.Name() != own && folderName.MatchString(e.Name()) {
			return true
		}
	}
	return false
}

// removeUnused removes the directories of other versions that no process uses: no mote has marked
// them, and no process executes a file in them. Shims outlive the mote that started them, and run
// the runc beside them until their pod ends. The caller holds root's lock.
func removeUnused(root, own string) error {
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == own || !folderName.MatchString(e.Name()) {
			continue
		}
		if err := removeIfUnused(filepath.Join(root, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func removeIfUnused(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // marked as used
	}
	runs, err := runsFrom(dir)
	if err != nil || runs {
		return err
	}
	return os.RemoveAll(dir)
}

// runsFrom reports whether a process executes a file in dir, even one that was replaced since.
func runsFrom(dir string) (bool, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	processes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return false, err
	}
	for _, exe := range processes {
		// Kernel threads have no program, and other processes may end meanwhile.
		if target, err := os.Readlink(exe); err == nil && strings.HasPrefix(target, dir+"/") {
			return true, nil
		}
	}
	return false, nil
}

// refuseNoexec fails if programs below root cannot be executed.
func refuseNoexec(root string) error {
	var at unix.Statfs_t
	if err := unix.Statfs(root, &at); err != nil {
		return &fs.PathError{Op: "statfs", Path: root, Err: err}
	}
	if at.Flags&unix.ST_NOEXEC != 0 {
		return errNoexec
	}
	return nil
}

var errNoexec = errors.New("mounted noexec")

// explain adds advice for the user to an error.
func explain(root string, err error) error {
	advice := ""
	switch {
	case errors.Is(err, errNoexec):
		advice = "; remount it with exec or set --data-dir"
	case errors.Is(err, unix.EROFS):
		advice = "; mount it read-write or set --data-dir"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		advice = "; free some 40 MB or set --data-dir"
	case errors.Is(err, fs.ErrPermission):
		advice = "; run as root"
	}
	return fmt.Errorf("cannot unpack programs to %s: %w%s", root, err, advice)
}
