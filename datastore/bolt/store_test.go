package bolt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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

	"github.com/mote-k8s/mote/datastore/wal"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// create, update and remove write as the apiserver does. They return the revision, or errRefused.
func (s *Store) create(ctx context.Context, key string, value []byte) (int64, error) {
	return s.update(ctx, key, value, 0)
}

func (s *Store) update(ctx context.Context, key string, value []byte, guard int64) (int64, error) {
	return s.tryWrite(ctx, Write{Key: key, Value: value, Guard: &Guard{Value: guard}})
}

func (s *Store) remove(ctx context.Context, key string) (int64, error) {
	return s.tryWrite(ctx, Write{Key: key, Delete: true})
}

func (s *Store) tryWrite(ctx context.Context, w Write) (int64, error) {
	res, err := s.Write(ctx, w)
	if err == nil && !res.OK {
		err = errRefused
	}
	return res.Revision, err
}

var errRefused = errors.New("refused")

func (s *Store) count(ctx context.Context, key, end string) (int64, error) {
	list, err := s.Range(ctx, Query{Key: key, End: end, CountOnly: true})
	return list.Count, err
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
		"log is gone": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			require.NoError(t, os.Remove(logPath(path)+".0"))
		}, "put the log back or restore a snapshot"},
		"log of another": {func(t *testing.T, path string) {
			s := open(t, path)
			_, err := s.create(t.Context(), "a", nil)
			require.NoError(t, err)
			require.NoError(t, s.Close())
			require.NoError(t, os.Remove(path))
		}, "put it back, restore a snapshot"},
		"newer format": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			db, err := bbolt.Open(path, 0o600, nil)
			require.NoError(t, err)
			require.NoError(t, update(db, func(f *fileTx) error { return putMeta(f.meta, metaFormat, Format+1) }))
			require.NoError(t, db.Close())
		}, "written by another version of mote"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			c.prepare(t, path)
			_, err := Open(path, Options{})
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
	for name, limit := range map[string]int64{"log": 0, "checkpoint": 100_000} { // what meets the full disk
		t.Run(name, func(t *testing.T) { testFullDisk(t, Options{limit: limit}) })
	}
}

func testFullDisk(t *testing.T, o Options) {
	runtime.LockOSThread() // and never unlock: the thread must not be used again
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		t.Skip("cannot make a mount namespace: ", err)
	}
	dir := t.TempDir()
	mount := func(flags uintptr, options string) {
		require.NoError(t, syscall.Mount("mote-test", dir, "tmpfs", flags, options))
	}
	require.NoError(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	mount(0, "size=1m")
	defer func() { require.NoError(t, syscall.Unmount(dir, syscall.MNT_DETACH)) }()
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
		require.EqualValues(t, firstRevision+written, s.Revision())
	}
	fill()
	fill() // again, after the first try
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

// TestDiskFailure: when a sync fails nothing may be acknowledged any more, and the next start has all that was.
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

func TestGroupCommitSharesTransactions(t *testing.T) {
	s := openTemp(t)
	release := make(chan struct{})
	blocker, err := s.enqueue(t.Context(), func(*writeTx) (answer, error) { <-release; return answer{}, nil })
	require.NoError(t, err)
	var seen sync.Map
	requests := make([]*request, 50)
	for i := range requests {
		requests[i], err = s.enqueue(t.Context(), func(tx *writeTx) (answer, error) {
			seen.Store(tx, true)
			return tx.write(Write{Key: fmt.Sprint(i % 25), Guard: &Guard{}})
		})
		require.NoError(t, err)
	}
	close(release)
	created := 0
	for _, req := range append(requests, blocker) {
		if res, err := s.wait(t.Context(), req); err == nil && res.OK {
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
	w := s.NewWatcher()
	require.True(t, w.Watch(1, Range{Key: "a"}))
	require.NoError(t, s.Close())
	_, err := w.Next(t.Context())
	require.ErrorIs(t, err, ErrClosed)
	w.Close()
	_, err = s.create(t.Context(), "a", nil)
	require.ErrorIs(t, err, ErrClosed)
	_, err = s.Range(t.Context(), Query{Key: "a"})
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, s.Check(), ErrClosed)
}

// TestCompactionFreesSpace: history is bounded by what is kept, not by what was written.
func TestCompactionFreesSpace(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), Options{limit: 100_000})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	value := make([]byte, 2000)
	rev, err := s.create(t.Context(), "hot", value)
	require.NoError(t, err)
	var sizes []int64
	for range 4 {
		for range 250 {
			rev, err = s.update(t.Context(), "hot", value, rev)
			require.NoError(t, err)
		}
		_, err = s.Compact(t.Context(), rev)
		require.NoError(t, err)
		scrubbed(t, s)
		size, err := s.Size()
		require.NoError(t, err)
		sizes = append(sizes, size)
	}
	require.Less(t, sizes[3], sizes[0]+sizes[0]/2, "%v", sizes)
	require.NoError(t, s.Check())
	list, err := s.Range(t.Context(), Query{Key: "hot", Revision: rev})
	require.NoError(t, err)
	require.Len(t, list.KVs, 1)
}

// scrubbed waits until the file has no compacted history.
func scrubbed(t testing.TB, s *Store) {
	require.NoError(t, s.Checkpoint(t.Context()))
	require.Eventually(t, func() bool {
		done := false
		require.NoError(t, s.db.View(func(tx *bbolt.Tx) error {
			meta := tx.Bucket(bucketMeta())
			done = getMeta(meta, metaScrubbed) >= s.Compacted()-1 && getMeta(meta, metaCompacted) == s.Compacted()
			return nil
		}))
		return done
	}, 10*time.Second, time.Millisecond)
}

func TestLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s, err := Open(path, Options{})
		require.NoError(t, err)
		alive := func(key string) bool {
			synctest.Wait()
			n, err := s.count(ctx, key, "")
			require.NoError(t, err)
			return n == 1
		}
		grant := func(id, ttl int64) {
			_, err := s.Grant(ctx, id, ttl)
			require.NoError(t, err)
		}
		put := func(key string, lease int64) {
			_, err := s.Write(ctx, Write{Key: key, Lease: lease})
			require.NoError(t, err)
		}
		grant(1, 10)
		grant(2, 10)
		grant(3, 3600)
		_, err = s.Grant(ctx, 3, 1)
		require.ErrorIs(t, err, ErrLeaseExists)
		put("short", 1)
		put("freed", 1)
		put("moved", 1)
		put("renewed", 2)
		put("long", 3)
		_, err = s.Write(ctx, Write{Key: "none", Lease: 4})
		require.ErrorIs(t, err, ErrLeaseNotFound)
		time.Sleep(5 * time.Second)
		put("freed", 0)
		put("moved", 3)
		_, err = s.Renew(ctx, 2)
		require.NoError(t, err)
		time.Sleep(6 * time.Second)
		require.False(t, alive("short"))
		require.True(t, alive("renewed"))
		time.Sleep(5 * time.Second)
		require.False(t, alive("renewed"))
		require.True(t, alive("freed"))
		require.Equal(t, []int64{3}, s.Leases())

		require.NoError(t, s.Close())
		time.Sleep(1800 * time.Second) // without power
		s, err = Open(path, Options{})
		require.NoError(t, err)
		require.True(t, alive("long"))
		time.Sleep(1800 * time.Second)
		require.False(t, alive("long"), "time without power counts")
		require.False(t, alive("moved"))
		require.True(t, alive("freed"))
		grant(5, 3600)
		put("revoked", 5)
		lease, err := s.Lease(5)
		require.NoError(t, err)
		require.Equal(t, []string{"revoked"}, lease.Keys)
		_, err = s.Revoke(ctx, 5)
		require.NoError(t, err)
		require.False(t, alive("revoked"))
		_, err = s.Revoke(ctx, 5)
		require.ErrorIs(t, err, ErrLeaseNotFound)
		require.NoError(t, s.Check())
		require.NoError(t, s.Close())
	})
}

// TestLeaseAfterClockJump: a machine without a clock must neither lose its keys at once because the
// file is from the future, nor keep them for decades.
func TestLeaseAfterClockJump(t *testing.T) {
	l := newLeases()
	l.restore(1, leaseRow{ttl: 60, ends: time.Now().Add(20 * 365 * 24 * time.Hour).Unix()})
	ended, next := l.due(time.Now())
	require.Empty(t, ended)
	require.LessOrEqual(t, next, time.Minute)
	l.restore(2, leaseRow{ttl: 60, ends: 1})
	ended, _ = l.due(time.Now())
	require.Equal(t, []int64{2}, ended)
}

func TestCheckWhileWriting(t *testing.T) {
	s := openTemp(t)
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				rev, _ := s.create(ctx, fmt.Sprintf("%d/%d", w, i%50), make([]byte, 500))
				_, _ = s.remove(ctx, fmt.Sprintf("%d/%d", w, i%50))
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

// TestReadsAreSnapshots: while layers are written to the file, dropped and compacted, a list has all keys, and the
// same list at the same revision is the same.
func TestReadsAreSnapshots(t *testing.T) {
	const keys = 40
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), Options{limit: 5_000})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	for i := range keys {
		_, err := s.create(t.Context(), fmt.Sprintf("/k/%02d", i), []byte("new"))
		require.NoError(t, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	for range 4 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				res, _ := s.Write(ctx, Write{Key: fmt.Sprintf("/k/%02d", rand.IntN(keys)), Value: []byte(fmt.Sprint(i))})
				if i%10 == 0 {
					_, _ = s.Compact(ctx, res.Revision)
				}
			}
		})
	}
	list := func(revision int64) ([]*KV, int64) {
		list, err := s.Range(t.Context(), Query{Key: "/k/", End: "/k0", Revision: revision})
		if revision != 0 && errors.Is(err, ErrCompacted) {
			return nil, 0
		}
		require.NoError(t, err)
		require.Len(t, list.KVs, keys)
		return list.KVs, list.Revision
	}
	again := 0
	for range 3000 {
		first, revision := list(0)
		if second, _ := list(revision); second != nil {
			require.Equal(t, first, second)
			again++
		}
	}
	require.Positive(t, again)
}

// TestFirstStartInterrupted: a log that has grown and has no frame yet is no other store's, and is begun anew.
func TestFirstStartInterrupted(t *testing.T) {
	for _, grown := range []int64{0, 1, 4 << 10, 256 << 10} {
		path := filepath.Join(t.TempDir(), "state.db")
		for i, name := range logNames(logPath(path)) {
			require.NoError(t, os.WriteFile(name, make([]byte, grown*int64(i)), 0o600))
		}
		s, err := Open(path, Options{})
		require.NoError(t, err, "%d bytes", grown)
		_, err = s.create(t.Context(), "/key", nil)
		require.NoError(t, err)
		require.Empty(t, s.Repairs())
		require.NoError(t, s.Close())
	}
	path := filepath.Join(t.TempDir(), "state.db")
	log := make([]byte, 256<<10)
	log[9] = 1
	for _, name := range logNames(logPath(path)) {
		require.NoError(t, os.WriteFile(name, log, 0o600))
	}
	_, err := Open(path, Options{})
	require.ErrorIs(t, err, errOrphanLog)
}
