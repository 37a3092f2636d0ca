package dirlock

import (
	"context"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := TryLock(dir)
	require.NoError(t, err)
	_, err = TryLock(dir)
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorContains(t, err, dir)

	ctx, cancel := context.WithTimeout(t.Context(), 3*retry)
	defer cancel()
	_, err = Lock(ctx, dir)
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	got := make(chan error, 1)
	go func() {
		unlock, err := Lock(t.Context(), dir)
		if err == nil {
			unlock()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatal("the lock was given twice: ", err)
	case <-time.After(3 * retry):
	}
	unlock()
	require.NoError(t, <-got)
}

func TestNoDirectory(t *testing.T) {
	_, err := Lock(t.Context(), filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}
