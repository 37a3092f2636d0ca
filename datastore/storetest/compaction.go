package storetest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// testReopen checks that all acknowledged writes are there after a restart, and that revisions
// continue where they were.
func testReopen(t *testing.T, s *store) {
	a := s.create("/k/a", "1")
	b := s.create("/k/b", "1")
	del := s.delete("/k/b", b)
	for range 2 {
		s.stop()
		s.start()
		require.Equal(t, []string{"a=1"}, s.list("/k/"))
		require.Equal(t, []string{"a=1", "b=1"}, s.list("/k/", clientv3.WithRev(b)))
		require.GreaterOrEqual(t, s.get("/k/a").Header.Revision, del)
		events := s.watch("/k/", clientv3.WithPrefix(), clientv3.WithRev(b)).take(2)
		require.Equal(t, []string{"put /k/b=1", "delete /k/b was 1"}, events)
	}
	require.Greater(t, s.update("/k/a", "2", a), del)
}

func testReopenCompacted(t *testing.T, s *store) {
	a := s.create("/k/a", "1")
	b := s.create("/k/b", "1")
	del := s.delete("/k/b", b)
	s.compactTo(a)
	s.stop()
	s.start()
	require.Equal(t, del, s.get("/k/a").Header.Revision)
	_, err := s.client.Get(s.ctx, "/k/a", clientv3.WithRev(a-1))
	require.ErrorIs(t, err, rpctypes.ErrCompacted)
	require.Equal(t, del+1, s.update("/k/a", "2", a), "revisions go on where they were")
}

func testCompaction(t *testing.T, s *store) {
	a := s.create("/k/a", "1")
	a2 := s.update("/k/a", "2", a)
	b := s.create("/k/b", "1")
	del := s.delete("/k/b", b)
	last := s.update("/k/a", "3", a2)
	s.compactTo(b)
	require.Equal(t, []string{"a=2", "b=1"}, s.list("/k/", clientv3.WithRev(b)))
	require.Equal(t, []string{"a=2"}, s.list("/k/", clientv3.WithRev(del)))
	for _, revision := range []int64{a, a2} {
		_, err := s.client.Get(s.ctx, "/k/", clientv3.WithPrefix(), clientv3.WithRev(revision))
		require.ErrorIs(t, err, rpctypes.ErrCompacted)
		_, err = s.client.Get(s.ctx, "/k/", clientv3.WithPrefix(), clientv3.WithCountOnly(), clientv3.WithRev(revision))
		require.ErrorIs(t, err, rpctypes.ErrCompacted)
	}
	_, err := s.client.Compact(s.ctx, a)
	require.ErrorIs(t, err, rpctypes.ErrCompacted)
	_, err = s.client.Compact(s.ctx, last+1)
	require.ErrorIs(t, err, rpctypes.ErrFutureRev)

	// Watches behind the compaction still know the version before a deletion.
	require.Equal(t, []string{"delete /k/b was 1", "put /k/a=3 was 2"},
		s.watch("/k/", clientv3.WithPrefix(), clientv3.WithRev(del)).take(2))
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	refused := <-s.client.Watch(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithRev(a))
	require.ErrorIs(t, refused.Err(), rpctypes.ErrCompacted)
	require.Equal(t, b, refused.CompactRevision)

	s.compactTo(last)
	require.Equal(t, []string{"a=3"}, s.list("/k/"))
	require.Equal(t, []string{"a=3"}, s.list("/k/", clientv3.WithRev(last)))
	s.create("/k/b", "2")
	require.Equal(t, []string{"a=3"}, s.list("/k/", clientv3.WithRev(last)))
}

// testCompactionKey executes the apiserver's election of the server that compacts.
func testCompactionKey(t *testing.T, s *store) {
	const key = "compact_rev_key"
	elect := func(version int64, value string) *clientv3.TxnResponse {
		resp, err := s.client.Txn(s.ctx).If(clientv3.Compare(clientv3.Version(key), "=", version)).
			Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
		require.NoError(t, err)
		return resp
	}
	require.True(t, elect(0, "0").Succeeded)
	w := s.watch(key)
	lost := elect(0, "7")
	require.False(t, lost.Succeeded)
	kv := lost.Responses[0].GetResponseRange().Kvs[0]
	require.EqualValues(t, 1, kv.Version)
	require.Equal(t, "0", string(kv.Value))
	require.True(t, elect(1, "42").Succeeded)
	require.Equal(t, "42", string(s.get(key).Kvs[0].Value))
	require.Equal(t, []string{"put compact_rev_key=42 was 0"}, w.take(1))
}

// testWatchAtCompaction checks that the compacted revision is the first from which a watch can
// still begin, also if it is a deletion. The key's previous value is gone.
func testWatchAtCompaction(t *testing.T, s *store) {
	physical := func(revision int64) {
		_, err := s.client.Compact(s.ctx, revision, clientv3.WithCompactPhysical())
		require.NoError(t, err)
	}
	from := func(revision int64) *watcher {
		return s.watch("/k/", clientv3.WithPrefix(), clientv3.WithRev(revision))
	}
	a := s.create("/k/a", "1")
	physical(a)
	require.Equal(t, []string{"put /k/a=1"}, from(a).take(1))
	a2 := s.update("/k/a", "2", a)
	a3 := s.update("/k/a", "3", a2)
	physical(a2)
	require.Equal(t, []string{"put /k/a=2", "put /k/a=3 was 2"}, from(a2).take(2))
	b := s.create("/k/b", "1")
	del := s.delete("/k/b", b)
	last := s.update("/k/a", "4", a3)
	physical(del)
	for range 2 {
		require.Equal(t, []string{"delete /k/b", "put /k/a=4 was 3"}, from(del).take(2))
		require.Equal(t, []string{"a=3"}, s.list("/k/", clientv3.WithRev(del)))
		s.stop()
		s.start()
	}
	physical(last)
	require.Equal(t, []string{"a=4"}, s.list("/k/"))
	require.Equal(t, []string{"put /k/a=4"}, from(last).take(1))
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	refused := <-s.client.Watch(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithRev(last-1))
	require.ErrorIs(t, refused.Err(), rpctypes.ErrCompacted)
}
