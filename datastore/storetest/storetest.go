// Package storetest is the test suite that every storage engine passes. It uses an etcd client on a
// real socket, and tests the behaviour on which the apiserver relies, with requests in the
// apiserver's form.
//
// Enter through Run. The suite does not know the engines, so that it can also run against real etcd
// as its reference.
package storetest

import (
	"context"
	"fmt"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Open serves the store that is kept in dir, or a new one, and returns its endpoint. close ends it
// cleanly, so that it can be opened again.
type Open func(t testing.TB, dir string) (endpoint string, close func())

// timeout is for one test: the slowest waits for a lease of two seconds.
const timeout = 30 * time.Second

// Run runs the suite with one store for each test. except maps tests that the engine cannot pass to
// their reasons; Run skips them with the reason. A name that is not a test fails.
func Run(t *testing.T, open Open, except map[string]string) {
	tests := map[string]func(t *testing.T, s *store){
		"Create":              testCreate,
		"Update":              testUpdate,
		"Delete":              testDelete,
		"Versions":            testVersions,
		"ListAtRevision":      testListAtRevision,
		"Paging":              testPaging,
		"Count":               testCount,
		"CountAll":            testCountAll,
		"Watch":               testWatch,
		"WatchOneKey":         testWatchOneKey,
		"WatchHistory":        testWatchHistory,
		"WatchFuture":         testWatchFuture,
		"WatchProgress":       testWatchProgress,
		"WatchLongHistory":    testWatchLongHistory,
		"Compaction":          testCompaction,
		"CompactionKey":       testCompactionKey,
		"WatchAtCompaction":   testWatchAtCompaction,
		"WatchBigEvents":      testWatchBigEvents,
		"WatchesOfStream":     testWatchesOfStream,
		"Leases":              testLeases,
		"LeaseRevoked":        testLeaseRevoked,
		"LeaseReopen":         testLeaseReopen,
		"WithoutGuard":        testWithoutGuard,
		"TooLarge":            testTooLarge,
		"Concurrency":         testConcurrency,
		"Linearizable":        testLinearizable,
		"LinearizableChanges": testLinearizableChanges,
		"Reopen":              testReopen,
		"ReopenCompacted":     testReopenCompacted,
		"Status":              testStatus,
	}
	for name := range except {
		require.Contains(t, tests, name)
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if reason := except[name]; reason != "" {
				t.Skip("not with this engine: " + reason)
			}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			s := &store{T: t, ctx: ctx, dir: t.TempDir(), open: open}
			s.start()
			defer s.stop()
			test(t, s)
		})
	}
}

// store is a running store and a client of it. Its methods fail the test on unexpected errors.
type store struct {
	*testing.T
	ctx    context.Context
	dir    string
	open   Open
	close  func()
	client *clientv3.Client
}

func (s *store) start() {
	s.Helper()
	endpoint, closeStore := s.open(s.T, s.dir)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: timeout})
	require.NoError(s, err)
	s.client, s.close = client, closeStore
}

func (s *store) stop() {
	s.Helper()
	require.NoError(s, s.client.Close())
	s.close()
}

func (s *store) txn(guard int64, key string, then, otherwise []clientv3.Op) *clientv3.TxnResponse {
	s.Helper()
	resp, err := s.client.Txn(s.ctx).
		If(clientv3.Compare(clientv3.ModRevision(key), "=", guard)).Then(then...).Else(otherwise...).Commit()
	require.NoError(s, err)
	return resp
}

// create writes a new key as the apiserver does, and returns the revision.
func (s *store) create(key, value string, opts ...clientv3.OpOption) int64 {
	s.Helper()
	resp := s.txn(0, key, []clientv3.Op{clientv3.OpPut(key, value, opts...)}, nil)
	require.True(s, resp.Succeeded, "create %s", key)
	return resp.Header.Revision
}

func (s *store) tryUpdate(key, value string, guard int64) *clientv3.TxnResponse {
	s.Helper()
	return s.txn(guard, key, []clientv3.Op{clientv3.OpPut(key, value)}, []clientv3.Op{clientv3.OpGet(key)})
}

func (s *store) update(key, value string, guard int64) int64 {
	s.Helper()
	resp := s.tryUpdate(key, value, guard)
	require.True(s, resp.Succeeded, "update %s", key)
	return resp.Header.Revision
}

func (s *store) tryDelete(key string, guard int64) *clientv3.TxnResponse {
	s.Helper()
	return s.txn(guard, key, []clientv3.Op{clientv3.OpDelete(key)}, []clientv3.Op{clientv3.OpGet(key)})
}

func (s *store) delete(key string, guard int64) int64 {
	s.Helper()
	resp := s.tryDelete(key, guard)
	require.True(s, resp.Succeeded, "delete %s", key)
	return resp.Header.Revision
}

func (s *store) get(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	s.Helper()
	resp, err := s.client.Get(s.ctx, key, opts...)
	require.NoError(s, err)
	return resp
}

// list returns "key=value" of each key below prefix.
func (s *store) list(prefix string, opts ...clientv3.OpOption) []string {
	s.Helper()
	resp := s.get(prefix, append(opts, clientv3.WithPrefix())...)
	var out []string
	for _, kv := range resp.Kvs {
		out = append(out, fmt.Sprintf("%s=%s", path.Base(string(kv.Key)), kv.Value))
	}
	return out
}

// compactTo removes history as the apiserver does.
func (s *store) compactTo(revision int64) {
	s.Helper()
	_, err := s.client.Compact(s.ctx, revision)
	require.NoError(s, err)
}

func testCreate(t *testing.T, s *store) {
	first := s.create("/a", "1")
	require.Greater(t, first, int64(1), "Kubernetes needs revisions above 0, etcd's first write has 2")
	again := s.txn(0, "/a", []clientv3.Op{clientv3.OpPut("/a", "2")}, nil)
	require.False(t, again.Succeeded)
	require.Equal(t, first, again.Header.Revision)

	// The apiserver's conditional create also gets the existing key.
	conflict := s.tryUpdate("/a", "2", 0)
	require.False(t, conflict.Succeeded)
	require.Equal(t, "1", string(conflict.Responses[0].GetResponseRange().Kvs[0].Value))

	kv := s.get("/a").Kvs[0]
	require.Equal(t, "1", string(kv.Value))
	require.Equal(t, first, kv.CreateRevision)
	require.Equal(t, first, kv.ModRevision)
	require.Empty(t, s.get("/").Kvs)
	require.Empty(t, s.get("/a/").Kvs)
}

func testUpdate(t *testing.T, s *store) {
	first := s.create("/a", "1")
	second := s.update("/a", "2", first)
	require.Equal(t, first+1, second)

	stale := s.tryUpdate("/a", "3", first)
	require.False(t, stale.Succeeded)
	require.Equal(t, second, stale.Header.Revision)
	current := stale.Responses[0].GetResponseRange().Kvs[0]
	require.Equal(t, "2", string(current.Value))
	require.Equal(t, first, current.CreateRevision)
	require.Equal(t, second, current.ModRevision)

	missing := s.tryUpdate("/b", "1", first)
	require.False(t, missing.Succeeded)
	require.Empty(t, missing.Responses[0].GetResponseRange().Kvs)

	empty := s.update("/a", "", second)
	require.Equal(t, []string{"a="}, s.list("/a"))
	require.Equal(t, empty, s.get("/a").Header.Revision)
}

func testDelete(t *testing.T, s *store) {
	first := s.create("/a", "1")
	second := s.update("/a", "2", first)
	stale := s.tryDelete("/a", first)
	require.False(t, stale.Succeeded)
	require.Equal(t, "2", string(stale.Responses[0].GetResponseRange().Kvs[0].Value))

	third := s.delete("/a", second)
	require.Equal(t, second+1, third)
	require.Empty(t, s.get("/a").Kvs)
	gone := s.tryDelete("/a", second)
	require.False(t, gone.Succeeded)
	require.Equal(t, third, gone.Header.Revision, "deleting nothing takes no revision")
	require.Empty(t, gone.Responses[0].GetResponseRange().Kvs)

	fourth := s.create("/a", "4")
	kv := s.get("/a").Kvs[0]
	require.Equal(t, fourth, kv.CreateRevision, "a key made anew is a new key")
}

func testVersions(t *testing.T, s *store) {
	version := func() int64 { return s.get("/a").Kvs[0].Version }
	revision := s.create("/a", "1")
	require.EqualValues(t, 1, version())
	revision = s.update("/a", "2", revision)
	require.EqualValues(t, 2, version())
	s.delete("/a", revision)
	s.create("/a", "3")
	require.EqualValues(t, 1, version())
}

func testListAtRevision(t *testing.T, s *store) {
	start := s.get("/k/").Header.Revision
	a := s.create("/k/a", "1")
	b := s.create("/k/b", "1")
	s.create("/l", "other")
	a2 := s.update("/k/a", "2", a)
	del := s.delete("/k/b", b)
	b2 := s.create("/k/b", "2")
	want := map[int64][]string{
		start: nil,
		a:     {"a=1"},
		b:     {"a=1", "b=1"},
		a2:    {"a=2", "b=1"},
		del:   {"a=2"},
		b2:    {"a=2", "b=2"},
		0:     {"a=2", "b=2"},
	}
	for revision, pairs := range want {
		require.Equal(t, pairs, s.list("/k/", clientv3.WithRev(revision)), "revision %d", revision)
	}
	resp := s.get("/k/a", clientv3.WithRev(a))
	require.Equal(t, "1", string(resp.Kvs[0].Value))
	require.Equal(t, b2, resp.Header.Revision, "the header has the current revision")
	_, err := s.client.Get(s.ctx, "/k/a", clientv3.WithRev(b2+1))
	require.ErrorIs(t, err, rpctypes.ErrFutureRev)
}

func testPaging(t *testing.T, s *store) {
	const keys, limit = 10, 3
	for i := range keys {
		s.create(fmt.Sprintf("/k/%02d", i), "1")
	}
	revision := s.get("/k/").Header.Revision
	var got []string
	next, end := "/k/", clientv3.GetPrefixRangeEnd("/k/")
	for more := true; more; {
		resp := s.get(next, clientv3.WithRange(end), clientv3.WithLimit(limit), clientv3.WithRev(revision))
		for _, kv := range resp.Kvs {
			got = append(got, path.Base(string(kv.Key)))
		}
		require.EqualValues(t, keys-len(got)+len(resp.Kvs), resp.Count, "keys from the page's start on")
		more = resp.More
		next = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		// Writes between the pages must not appear in the list.
		s.create(fmt.Sprintf("/k/%02d-late", len(got)), "late")
	}
	require.Equal(t, []string{"00", "01", "02", "03", "04", "05", "06", "07", "08", "09"}, got)
}

func testCount(t *testing.T, s *store) {
	for i := range 5 {
		s.create(fmt.Sprintf("/k/%d", i), "1")
	}
	before := s.get("/k/").Header.Revision
	s.delete("/k/0", s.get("/k/0").Kvs[0].ModRevision)
	count := func(opts ...clientv3.OpOption) int64 {
		resp := s.get("/k/", append(opts, clientv3.WithPrefix(), clientv3.WithCountOnly())...)
		require.Empty(t, resp.Kvs)
		return resp.Count
	}
	require.EqualValues(t, 4, count())
	require.EqualValues(t, 5, count(clientv3.WithRev(before)))
	keys := s.get("/k/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	require.Len(t, keys.Kvs, 4)
	require.Empty(t, keys.Kvs[0].Value)
}

func testCountAll(t *testing.T, s *store) {
	for i := range 5 {
		s.create(fmt.Sprintf("/k/%d", i), "1")
	}
	all := s.get("\x00", clientv3.WithFromKey(), clientv3.WithCountOnly())
	require.GreaterOrEqual(t, all.Count, int64(5))
}

func testConcurrency(t *testing.T, s *store) {
	const writers, writes = 8, 15
	s.create("/counter", "0")
	var mu sync.Mutex
	seen := map[int64]bool{}
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for done := 0; done < writes; {
				kv := s.get("/counter").Kvs[0]
				var n int
				_, err := fmt.Sscan(string(kv.Value), &n)
				resp := s.tryUpdate("/counter", fmt.Sprint(n+1), kv.ModRevision)
				if err != nil || !resp.Succeeded {
					continue
				}
				done++
				mu.Lock()
				if seen[resp.Header.Revision] {
					t.Errorf("revision %d was given out twice", resp.Header.Revision)
				}
				seen[resp.Header.Revision] = true
				mu.Unlock()
			}
		})
	}
	group.Wait()
	require.Equal(t, fmt.Sprint(writers*writes), string(s.get("/counter").Kvs[0].Value))
	require.Len(t, seen, writers*writes)
}

func testStatus(t *testing.T, s *store) {
	status, err := s.client.Status(s.ctx, s.client.Endpoints()[0])
	require.NoError(t, err)
	require.Positive(t, status.DbSize)
	var major, minor, patch int
	_, err = fmt.Sscanf(status.Version, "%d.%d.%d", &major, &minor, &patch)
	require.NoError(t, err)
	require.GreaterOrEqual(t, major*1_000_000+minor*1000+patch, 3_005_013,
		"the apiserver asks etcd for progress of watches from 3.5.13 on")
	_, err = s.client.Get(s.ctx, "/registry/health")
	require.NoError(t, err, "the apiserver's health check")
}

// testWithoutGuard tests the unconditional requests that people send with etcdctl.
func testWithoutGuard(t *testing.T, s *store) {
	w := s.watch("/k/", clientv3.WithPrefix())
	put, err := s.client.Put(s.ctx, "/k/a", "1")
	require.NoError(t, err)
	require.Nil(t, put.PrevKv)
	put, err = s.client.Put(s.ctx, "/k/a", "2", clientv3.WithPrevKV())
	require.NoError(t, err)
	require.Equal(t, "1", string(put.PrevKv.Value))
	kv := s.get("/k/a").Kvs[0]
	require.EqualValues(t, 2, kv.Version)
	require.Equal(t, put.Header.Revision, kv.ModRevision)
	del, err := s.client.Delete(s.ctx, "/k/a", clientv3.WithPrevKV())
	require.NoError(t, err)
	require.EqualValues(t, 1, del.Deleted)
	require.Equal(t, "2", string(del.PrevKvs[0].Value))
	again, err := s.client.Delete(s.ctx, "/k/a")
	require.NoError(t, err)
	require.Zero(t, again.Deleted)
	require.Equal(t, del.Header.Revision, again.Header.Revision)
	require.Equal(t, []string{"put /k/a=1", "put /k/a=2 was 1", "delete /k/a was 2"}, w.take(3))
	_, err = s.client.Put(s.ctx, "", "1")
	require.ErrorIs(t, err, rpctypes.ErrEmptyKey)
}

// testTooLarge checks etcd's error for this limit, which Kubernetes documents to its users.
func testTooLarge(t *testing.T, s *store) {
	s.create("/k/large", strings.Repeat("x", 1500<<10))
	_, err := s.client.Put(s.ctx, "/k/too", strings.Repeat("x", 1600<<10))
	require.ErrorIs(t, err, rpctypes.ErrRequestTooLarge)
	require.Len(t, s.list("/k/"), 1)
}
