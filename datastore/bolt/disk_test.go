package bolt

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/wal"
)

// TestFullDisk needs root for a small file system of its own, in a mount namespace that dies with
// the test's thread.
func TestFullDisk(t *testing.T) {
	// The name says where the store meets the full disk.
	for name, limit := range map[string]int64{"log": 0, "checkpoint": 100_000} {
		t.Run(name, func(t *testing.T) { testFullDisk(t, Options{limit: limit}) })
	}
}

// smallDisk creates a file system of 1 MB, and returns a function that mounts it with other
// options.
func smallDisk(t *testing.T) (dir string, mount func(flags uintptr, options string)) {
	runtime.LockOSThread() // and never unlock: the thread must not be used again
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		t.Skip("cannot make a mount namespace: ", err)
	}
	dir = t.TempDir()
	mount = func(flags uintptr, options string) {
		require.NoError(t, syscall.Mount("mote-test", dir, "tmpfs", flags, options))
	}
	require.NoError(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	mount(0, "size=1m")
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir, mount
}

func testFullDisk(t *testing.T, o Options) {
	dir, mount := smallDisk(t)
	path := filepath.Join(dir, "state.db")
	s, err := Open(path, o)
	require.NoError(t, err)
	value := make([]byte, 10<<10)
	written := 0
	fill := func() {
		for range 1000 {
			if _, err = s.create(t.Context(), fmt.Sprint("key", written), value); err != nil {
				break
			}
			written++
		}
		require.ErrorIs(t, err, ErrNoSpace)
	}
	check := func() {
		n, err := s.count(t.Context(), "key", "kez")
		require.NoError(t, err)
		require.EqualValues(t, written, n, "acknowledged keys")
		require.EqualValues(t, format.FirstRevision+written, s.Revision())
	}
	fill()
	fill() // again, after the first attempt
	check()

	mount(syscall.MS_REMOUNT, "size=2m")
	require.Eventually(t, func() bool {
		_, err = s.create(t.Context(), fmt.Sprint("key", written), value)
		return err == nil
	}, 10*time.Second, time.Millisecond, "there is space again")
	written++
	fill()
	check()
	require.NoError(t, s.Close(), "a stop on a full disk")

	s, err = Open(path, o)
	require.NoError(t, err, "a start on a full disk, with a log to be read")
	check()
	for range 3 {
		_, err = s.create(t.Context(), "refused", value)
		require.ErrorIs(t, err, ErrNoSpace)
		require.True(t, s.NoSpace())
	}
	mount(syscall.MS_REMOUNT, "size=10m")
	require.Eventually(t, func() bool {
		_, err = s.create(t.Context(), fmt.Sprint("key", written), value)
		return err == nil
	}, 10*time.Second, time.Millisecond, "there is space again")
	written++
	require.False(t, s.NoSpace())
	check()
	require.NoError(t, s.Close())

	mount(syscall.MS_REMOUNT, "size=20m")
	s, err = Open(path, o)
	require.NoError(t, err)
	check()
	require.NoError(t, s.Check())
	require.NoError(t, s.Close())

	mount(syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	_, err = Open(path, o)
	require.ErrorContains(t, err, "the file system is read-only; mount it writable")
}

// TestDiskFailure checks that after a failed sync nothing is acknowledged any more, and that the
// next start has everything that was acknowledged.
func TestDiskFailure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	disk := newDisk(t, rand.New(rand.NewPCG(1, 1)))
	o := Options{openLog: func(string) (wal.Files, error) { return disk.Files(), nil }}
	s, err := Open(path, o)
	require.NoError(t, err)
	_, err = s.create(t.Context(), "a", nil)
	require.NoError(t, err)
	disk.Fail = func(op string) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	_, err = s.create(t.Context(), "b", nil)
	require.ErrorIs(t, err, syscall.EIO)
	<-s.Failed()
	require.ErrorContains(t, s.Failure(), "check the disk")
	_, err = s.create(t.Context(), "c", nil)
	require.ErrorIs(t, err, s.Failure())
	require.NoError(t, s.Close())

	disk.Fail = nil
	disk = disk.CutPower()
	s, err = Open(path, o)
	require.NoError(t, err)
	n, err := s.count(t.Context(), "a", "")
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	n, err = s.count(t.Context(), "c", "")
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, s.Close())
}

// TestCopyOnFullDisk checks that a copy without room is refused as a write is, and that the store
// continues.
func TestCopyOnFullDisk(t *testing.T) {
	dir, mount := smallDisk(t)
	s, err := Open(filepath.Join(dir, "state.db"), Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	createKeys(t, s, 0, 50)
	for _, room := range []int{
		100 << 10, // enough for the file as it is, but not for the 50 keys
		12 << 10,  // enough for the first pages of the file
		0,
	} {
		leave(t, dir, room)
		_, err = s.Copy(t.Context())
		require.ErrorIs(t, err, ErrNoSpace, "%d bytes of room", room)
		require.False(t, s.Damaged())
	}
	mount(syscall.MS_REMOUNT, "size=4m")
	require.Len(t, copied(t, s), 50)
}

// TestCopyWithinTheFile checks that without room for another file the store's own file becomes the
// copy, if it has free pages.
func TestCopyWithinTheFile(t *testing.T) {
	dir, mount := smallDisk(t)
	mount(syscall.MS_REMOUNT, "size=4m")
	s, err := Open(filepath.Join(dir, "state.db"), Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	createKeys(t, s, 0, 50)
	require.NoError(t, s.Checkpoint(t.Context()))
	for i := range 50 {
		_, err := s.remove(t.Context(), fmt.Sprint("key", i))
		require.NoError(t, err)
	}
	_, err = s.Compact(t.Context(), s.Revision())
	require.NoError(t, err)
	for range 2 { // one round frees the pages that the next one uses
		require.NoError(t, s.Checkpoint(t.Context()))
	}
	createKeys(t, s, 50, 60)
	leave(t, dir, 0)
	require.Len(t, copied(t, s), 10)
}

func createKeys(t *testing.T, s *Store, from, to int) {
	t.Helper()
	value := make([]byte, 10<<10)
	for i := from; i < to; i++ {
		_, err := s.create(t.Context(), fmt.Sprint("key", i), value)
		require.NoError(t, err)
	}
}

// leave fills the disk of dir until only room bytes are free.
func leave(t *testing.T, dir string, room int) {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	require.NoError(t, os.RemoveAll(ballast))
	var disk syscall.Statfs_t
	require.NoError(t, syscall.Statfs(dir, &disk))
	require.NoError(t, os.WriteFile(ballast, make([]byte, int(disk.Bavail)*int(disk.Bsize)-room), 0o600))
}
