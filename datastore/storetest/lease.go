package storetest

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func testLeases(t *testing.T, s *store) {
	lease, err := s.client.Grant(s.ctx, 2)
	require.NoError(t, err)
	w := s.watch("/k/", clientv3.WithPrefix())
	a := s.create("/k/a", "1", clientv3.WithLease(lease.ID))
	b := s.create("/k/b", "1", clientv3.WithLease(lease.ID))
	s.create("/k/c", "1")
	s.update("/k/b", "2", b) // without a lease: it stays
	require.Equal(t, []string{
		"put /k/a=1", "put /k/b=1", "put /k/c=1", "put /k/b=2 was 1", "delete /k/a was 1",
	}, w.take(5))
	require.Equal(t, []string{"b=2", "c=1"}, s.list("/k/"))
	require.Greater(t, s.get("/k/a").Header.Revision, a)
}

func testLeaseRevoked(t *testing.T, s *store) {
	lease, err := s.client.Grant(s.ctx, 1000)
	require.NoError(t, err)
	s.create("/k/a", "1", clientv3.WithLease(lease.ID))
	moved := s.create("/k/b", "1", clientv3.WithLease(lease.ID))
	s.update("/k/b", "2", moved)
	require.EqualValues(t, lease.ID, s.get("/k/a").Kvs[0].Lease)
	require.Zero(t, s.get("/k/b").Kvs[0].Lease)
	alive, err := s.client.KeepAliveOnce(s.ctx, lease.ID)
	require.NoError(t, err)
	require.EqualValues(t, 1000, alive.TTL)
	left, err := s.client.TimeToLive(s.ctx, lease.ID, clientv3.WithAttachedKeys())
	require.NoError(t, err)
	require.EqualValues(t, 1000, left.GrantedTTL)
	require.InDelta(t, 1000, left.TTL, 60)
	require.Equal(t, [][]byte{[]byte("/k/a")}, left.Keys)
	_, err = s.client.Revoke(s.ctx, lease.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"b=2"}, s.list("/k/"))
	_, err = s.client.Revoke(s.ctx, lease.ID)
	require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
	_, err = s.client.KeepAliveOnce(s.ctx, lease.ID)
	require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
	_, err = s.client.Put(s.ctx, "/k/c", "1", clientv3.WithLease(lease.ID))
	require.ErrorIs(t, err, rpctypes.ErrLeaseNotFound)
	gone, err := s.client.TimeToLive(s.ctx, lease.ID)
	require.NoError(t, err)
	require.EqualValues(t, -1, gone.TTL)
}

// testLeaseReopen checks leases across a restart: the apiserver uses a lease for a minute, also
// while mote restarts.
func testLeaseReopen(t *testing.T, s *store) {
	lease, err := s.client.Grant(s.ctx, 1000)
	require.NoError(t, err)
	s.create("/k/a", "1", clientv3.WithLease(lease.ID))
	s.stop()
	s.start()
	s.create("/k/b", "1", clientv3.WithLease(lease.ID))
	_, err = s.client.Revoke(s.ctx, lease.ID)
	require.NoError(t, err)
	require.Empty(t, s.list("/k/"))
}
