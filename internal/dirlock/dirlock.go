// Package dirlock keeps processes from doing the same work at once, with the kernel's lock (flock)
// on an existing directory: it needs no file, and the kernel releases it when the process is
// killed.
//
// Each call takes the lock anew, also within a process: two goroutines exclude each other like two
// processes.
package dirlock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is wrapped by errors for a lock that another caller holds.
var ErrLocked = errors.New("somebody else has it locked")

// retry is the pause between two attempts: the kernel's own wait would not end with a context.
const retry = 10 * time.Millisecond

// Lock waits for the lock on dir until ctx ends. The lock is held until unlock is called.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	for {
		unlock, err := TryLock(dir)
		if !errors.Is(err, ErrLocked) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(retry):
		}
	}
}

// patience is far longer than it takes to write a few small files, each with a sync.
const patience = 30 * time.Second

// LockBriefly does the same as Lock, for changes of a few small files. It returns an error after a
// wait that is longer than such a change can take.
func LockBriefly(dir string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return Lock(ctx, dir)
}

// TryLock takes the lock on dir, or at once returns an error that wraps ErrLocked.
func TryLock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() {
				// Close alone would leave it locked while a child process that is just starting has
				// the descriptor too.
				_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
				f.Close()
			}, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
}
