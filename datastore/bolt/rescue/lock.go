package rescue

import (
	"errors"
	"os"
	"time"

	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

const (
	// lockTimeout limits Open's wait for another process to release the file. A killed process
	// loses its lock at once; one that holds it longer than this is alive.
	lockTimeout = time.Second
	// lockPoll is the time between two tries.
	lockPoll = 20 * time.Millisecond
)

// lockFile opens a file for this process alone. The lock is the one that bbolt takes.
func lockFile(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(f); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		// The process that had the lock may have put another file there.
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
