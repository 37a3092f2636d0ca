package etcd_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/etcd"
)

// TestRequestLimit checks that the largest request is the same as with etcd, which counts the bytes
// that it adds for its log.
func TestRequestLimit(t *testing.T) {
	f := serve(t)
	inEtcd := func(r *etcdserverpb.PutRequest) int {
		log := etcdserverpb.InternalRaftRequest{Header: &etcdserverpb.RequestHeader{ID: 1 << 63}, Put: r}
		return log.Size()
	}
	put := &etcdserverpb.PutRequest{Key: []byte("key"), Value: make([]byte, etcd.MaxRequest)}
	put.Value = put.Value[:2*etcd.MaxRequest-inEtcd(put)]
	require.Equal(t, etcd.MaxRequest, inEtcd(put))
	_, err := f.kv.Put(t.Context(), put)
	require.NoError(t, err)
	put.Value = append(put.Value, 0)
	_, err = f.kv.Put(t.Context(), put)
	require.ErrorIs(t, rpctypes.Error(err), rpctypes.ErrRequestTooLarge)
}

// TestAlarm checks that over the quota clients get etcd's error and see its alarm, which ends by
// itself.
func TestAlarm(t *testing.T) {
	f := serveStore(t, bolt.Options{QuotaBytes: 1 << 20})
	alarms := etcdserverpb.NewMaintenanceClient(f.conn)
	list := func(action etcdserverpb.AlarmRequest_AlarmAction) []*etcdserverpb.AlarmMember {
		resp, err := alarms.Alarm(t.Context(), &etcdserverpb.AlarmRequest{Action: action, Alarm: etcdserverpb.AlarmType_NOSPACE})
		require.NoError(t, err)
		return resp.Alarms
	}
	require.Empty(t, list(etcdserverpb.AlarmRequest_GET))
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		_, err = f.kv.Put(t.Context(), &etcdserverpb.PutRequest{Key: fmt.Append(nil, n), Value: make([]byte, 10_000)})
	}
	require.ErrorIs(t, rpctypes.Error(err), rpctypes.ErrNoSpace)
	require.Equal(t, []*etcdserverpb.AlarmMember{{Alarm: etcdserverpb.AlarmType_NOSPACE}}, list(etcdserverpb.AlarmRequest_GET))
	require.Len(t, list(etcdserverpb.AlarmRequest_DEACTIVATE), 1, "to disarm makes no room")
	var revision int64
	for i := range n - 1 {
		resp, err := f.kv.DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: fmt.Append(nil, i)})
		require.NoError(t, err)
		revision = resp.Header.Revision
	}
	_, err = f.kv.Compact(t.Context(), &etcdserverpb.CompactionRequest{Revision: revision})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(list(etcdserverpb.AlarmRequest_GET)) == 0 }, 10*time.Second, time.Millisecond)
	_, err = f.kv.Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("new")})
	require.NoError(t, err)
}
