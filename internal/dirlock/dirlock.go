// Package dirlock keeps processes from doing the same thing at once, by the kernel's lock (flock) on a directory that is
// there anyway: it needs no file, and a process that is killed gives it back.
//
// Within a process each call takes the lock anew: two goroutines keep each other out as two processes do.
package dirlock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrLocked is wrapped by errors for a lock that somebody else has.
var ErrLocked = errors.New("somebody else has it locked")

// retry is between two tries: the kernel's own waiting would not end with a context.
const retry = 10 * time.Millisecond

// Lock waits for the lock on dir until ctx ends. It holds until unlock is called.
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

// patience is far longer than anybody takes for a few small files, each synced.
const patience = 30 * time.Second

// LockBriefly is Lock for changes of a few small files: who waits longer than they can take is told so.
func LockBriefly(dir string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return Lock(ctx, dir)
}

// TryLock takes the lock on dir, or returns an error that wraps ErrLocked at once.
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
				// Closed alone, it would be locked for as long as a child that is just being made has it too.
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
