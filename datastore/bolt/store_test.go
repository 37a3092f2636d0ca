package bolt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/mote-k8s/mote/datastore/bolt/format"
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

// TestCompactionFreesSpace checks that the size of the history depends on what is kept, not on what
// was written.
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
			counters := format.CountersOf(tx.Bucket([]byte(format.MetaBucket)))
			done = counters.Scrubbed >= s.Compacted()-1 && counters.Compacted == s.Compacted()
			return nil
		}))
		return done
	}, 10*time.Second, time.Millisecond)
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

// TestReadsAreSnapshots checks that a list has all keys while layers are written to the file,
// dropped and compacted, and that the same list at the same revision stays the same.
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
