package bolt

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func openTemp(t testing.TB) *Store {
	return open(t, filepath.Join(t.TempDir(), "state.db"))
}

func TestOpenErrorsSayWhatToDo(t *testing.T) {
	foreign := func(t *testing.T, path string) {
		require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("not a database ", 1000)), 0o600))
	}
	cases := map[string]struct {
		prepare func(t *testing.T, path string)
		want    string
	}{
		"locked":       {func(t *testing.T, path string) { open(t, path) }, "another process has it open; stop the other mote"},
		"foreign file": {foreign, "not a mote datastore"},
		"directory":    {func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) }, "not a mote datastore"},
		"other bbolt file": {func(t *testing.T, path string) {
			db, err := bbolt.Open(path, 0o600, nil)
			require.NoError(t, err)
			require.NoError(t, db.Close())
		}, "not a mote datastore"},
		"cut off": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			require.NoError(t, os.Truncate(path, 2*pageSize))
		}, "not a mote datastore, or a damaged one"},
		"zeroed": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(path, 2*pageSize))
			require.NoError(t, os.Truncate(path, info.Size()))
		}, "not a mote datastore, or a damaged one"},
		"newer format": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			db, err := bbolt.Open(path, 0o600, nil)
			require.NoError(t, err)
			require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
				return putMeta(tx.Bucket(bucketMeta()), metaFormat, Format+1)
			}))
			require.NoError(t, db.Close())
		}, "written by another version of mote"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			c.prepare(t, path)
			_, err := Open(path)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, path)
		})
	}
}

// TestOpenAfterInterruptedFirstStart finds what a power cut may leave of the very first start.
func TestOpenAfterInterruptedFirstStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "datastore", "state.db")
	require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path+".new", make([]byte, 3*pageSize), 0o600))
	s := open(t, path)
	require.EqualValues(t, firstRevision, s.Revision())
	require.NoFileExists(t, path+".new")
}

// TestFullDisk needs root for a small file system of its own, in a mount namespace that dies with
// the test's thread.
func TestFullDisk(t *testing.T) {
	runtime.LockOSThread() // and never unlock: the thread must not be used again
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		t.Skip("cannot make a mount namespace: ", err)
	}
	dir := t.TempDir()
	mount := func(flags uintptr, options string) {
		require.NoError(t, syscall.Mount("mote-test", dir, "tmpfs", flags, options))
	}
	require.NoError(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	mount(0, "size=512k")
	defer func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) }()
	path := filepath.Join(dir, "state.db")
	s, err := Open(path)
	require.NoError(t, err)
	value := make([]byte, 10<<10)
	written := 0
	for ; err == nil; written++ {
		_, err = s.Create(t.Context(), fmt.Sprint("key", written), value, 0)
	}
	require.ErrorIs(t, err, ErrNoSpace)
	_, n, err := s.Count(t.Context(), Query{Key: "key", End: "kez"})
	require.NoError(t, err)
	require.EqualValues(t, written-1, n, "acknowledged keys")

	mount(syscall.MS_REMOUNT, "size=8m")
	rev, err := s.Create(t.Context(), "key-after", value, 0)
	require.NoError(t, err, "there is space again")
	require.EqualValues(t, firstRevision+written, rev)
	require.NoError(t, s.Check())
	require.NoError(t, s.Close())

	mount(syscall.MS_REMOUNT|syscall.MS_RDONLY, "")
	_, err = Open(path)
	require.ErrorContains(t, err, "the file system is read-only; mount it writable")
}

// TestDiskFailure: when a sync fails nothing may be acknowledged any more.
func TestDiskFailure(t *testing.T) {
	s := openTemp(t)
	_, err := s.Create(t.Context(), "a", nil, 0)
	require.NoError(t, err)
	s.requests <- &request{done: make(chan struct{}), apply: func(tx *writeTx) (result, error) {
		tx.dirty = true
		return result{}, tx.tx.Rollback() // the commit that follows fails as it would on a bad disk
	}}
	<-s.Failed()
	require.ErrorContains(t, s.Failure(), "check the disk")
	_, err = s.Create(t.Context(), "b", nil, 0)
	require.ErrorIs(t, err, s.Failure())
}

func TestGroupCommitSharesTransactions(t *testing.T) {
	s := openTemp(t)
	release := make(chan struct{})
	blocker, err := s.enqueue(t.Context(), func(*writeTx) (result, error) { <-release; return result{}, nil })
	require.NoError(t, err)
	var seen sync.Map
	requests := make([]*request, 50)
	for i := range requests {
		requests[i], err = s.enqueue(t.Context(), func(tx *writeTx) (result, error) {
			seen.Store(tx, true)
			return tx.create(fmt.Sprint(i%25), nil, 0)
		})
		require.NoError(t, err)
	}
	close(release)
	created := 0
	for _, req := range append(requests, blocker) {
		if res, err := s.wait(t.Context(), req); err == nil && res.ok {
			created++
		}
	}
	transactions := 0
	seen.Range(func(any, any) bool { transactions++; return true })
	require.Equal(t, 1, transactions)
	require.Equal(t, 25, created, "the second create of a key must see the first in the same transaction")
}

func TestClosedStoreRefuses(t *testing.T) {
	s := openTemp(t)
	ended := make(chan error, 1)
	require.NoError(t, s.Watch(t.Context(), "a", "", 0, &recorder{ended: ended}))
	require.NoError(t, s.Close())
	require.NoError(t, <-ended)
	_, err := s.Create(t.Context(), "a", nil, 0)
	require.ErrorIs(t, err, ErrClosed)
	_, _, err = s.Range(t.Context(), Query{Key: "a"})
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, s.Watch(t.Context(), "a", "", 0, nil), ErrClosed)
	require.ErrorIs(t, s.Check(), ErrClosed)
	s.WaitDelivered(1000)
}

// TestCompactionFreesSpace: history is bounded by what is kept, not by what was written.
func TestCompactionFreesSpace(t *testing.T) {
	s := openTemp(t)
	value := make([]byte, 2000)
	rev, err := s.Create(t.Context(), "hot", value, 0)
	require.NoError(t, err)
	var sizes []int64
	for range 4 {
		for range 250 {
			rev, _, _, err = s.Update(t.Context(), "hot", value, rev, 0)
			require.NoError(t, err)
		}
		_, err = s.Compact(t.Context(), rev)
		require.NoError(t, err)
		scrubbed(t, s)
		size, err := s.Size()
		require.NoError(t, err)
		sizes = append(sizes, size)
	}
	require.Less(t, sizes[3], sizes[0]+sizes[0]/4, "%v", sizes)
	require.NoError(t, s.Check())
	_, kvs, err := s.Range(t.Context(), Query{Key: "hot", Revision: rev})
	require.NoError(t, err)
	require.Len(t, kvs, 1)
}

// scrubbed waits until the scrubber has nothing to do.
func scrubbed(t testing.TB, s *Store) {
	require.Eventually(t, func() bool {
		done := false
		require.NoError(t, s.db.View(func(tx *bbolt.Tx) error {
			meta := tx.Bucket(bucketMeta())
			done = getMeta(meta, metaScrubbed) == getMeta(meta, metaCompacted)
			return nil
		}))
		return done
	}, 10*time.Second, time.Millisecond)
}

func TestLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s, err := Open(path)
		require.NoError(t, err)
		alive := func(key string) bool {
			synctest.Wait()
			_, n, err := s.Count(ctx, Query{Key: key})
			require.NoError(t, err)
			return n == 1
		}
		create := func(key string, lease int64) int64 {
			rev, err := s.Create(ctx, key, nil, lease)
			require.NoError(t, err)
			return rev
		}
		create("short", 10)
		renewed := create("renewed", 10)
		freed := create("freed", 10)
		create("long", 3600)
		time.Sleep(5 * time.Second)
		_, _, _, err = s.Update(ctx, "renewed", nil, renewed, 10)
		require.NoError(t, err)
		_, _, _, err = s.Update(ctx, "freed", nil, freed, 0)
		require.NoError(t, err)
		time.Sleep(6 * time.Second)
		require.False(t, alive("short"))
		require.True(t, alive("renewed"))
		time.Sleep(5 * time.Second)
		require.False(t, alive("renewed"))
		require.True(t, alive("freed"))

		require.NoError(t, s.Close())
		time.Sleep(1800 * time.Second) // without power
		s, err = Open(path)
		require.NoError(t, err)
		require.True(t, alive("long"))
		time.Sleep(1800 * time.Second)
		require.False(t, alive("long"), "time without power counts")
		require.True(t, alive("freed"))
		require.NoError(t, s.Close())
	})
}

// TestLeaseAfterClockJump: a machine without a clock must neither lose its keys at once because the
// file is from the future, nor keep them for decades.
func TestLeaseAfterClockJump(t *testing.T) {
	l := newLeases()
	l.restore("future", header{mod: 2, lease: 60, expires: time.Now().Add(20 * 365 * 24 * time.Hour).Unix()})
	ended, next := l.due(time.Now())
	require.Empty(t, ended)
	require.LessOrEqual(t, next, time.Minute)
	l.restore("past", header{mod: 3, lease: 60, expires: 1})
	ended, _ = l.due(time.Now())
	require.Len(t, ended, 1)
}

func TestCheckWhileWriting(t *testing.T) {
	s := openTemp(t)
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				rev, _ := s.Create(ctx, fmt.Sprintf("%d/%d", w, i%50), make([]byte, 500), 0)
				_, _, _, _ = s.Delete(ctx, fmt.Sprintf("%d/%d", w, i%50), 0)
				if i%20 == 0 {
					_, _ = s.Compact(ctx, rev)
				}
			}
		})
	}
	for range 200 {
		require.NoError(t, s.Check())
	}
	cancel()
	writers.Wait()
	require.NoError(t, s.Check())
}
