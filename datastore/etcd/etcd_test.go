package etcd_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/etcd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// face is a served store and a connection to it.
type face struct {
	conn *grpc.ClientConn
	kv   etcdserverpb.KVClient
	stop func()
}

func serve(t testing.TB) face {
	return serveStore(t, bolt.Options{ProgressInterval: time.Millisecond})
}

func serveStore(t testing.TB, o bolt.Options) face {
	dir := t.TempDir()
	store, err := bolt.Open(filepath.Join(dir, "state.db"), o)
	require.NoError(t, err)
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	srv := grpc.NewServer(grpc.WaitForHandlers(true), grpc.ForceServerCodecV2(etcd.Codec()))
	protocol := etcd.Register(srv, store)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		srv.Stop()
		require.NoError(t, <-served)
		require.NoError(t, store.Close())
	})
	return face{conn: conn, kv: etcdserverpb.NewKVClient(conn), stop: func() {
		protocol.Stop()
		srv.GracefulStop()
	}}
}

func compare(key string, target etcdserverpb.Compare_CompareTarget, result etcdserverpb.Compare_CompareResult) []*etcdserverpb.Compare {
	return []*etcdserverpb.Compare{{Key: []byte(key), Target: target, Result: result}}
}

func opPut(key string) *etcdserverpb.RequestOp {
	return &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: []byte(key)}}}
}

func opGet(key string) *etcdserverpb.RequestOp {
	return &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: []byte(key)}}}
}

// TestOutsideTheSubset checks that each request outside the subset is refused by name, and changes
// nothing.
func TestOutsideTheSubset(t *testing.T) {
	f := serve(t)
	ctx := t.Context()
	key, end := []byte("a"), []byte("b")
	const mod, equal = etcdserverpb.Compare_MOD, etcdserverpb.Compare_EQUAL
	ranges := map[string]*etcdserverpb.RangeRequest{
		"descending":     {Key: key, RangeEnd: end, SortOrder: etcdserverpb.RangeRequest_DESCEND},
		"sorted by mod":  {Key: key, RangeEnd: end, SortOrder: etcdserverpb.RangeRequest_ASCEND, SortTarget: etcdserverpb.RangeRequest_MOD},
		"from revision":  {Key: key, RangeEnd: end, MinModRevision: 5},
		"until creation": {Key: key, RangeEnd: end, MaxCreateRevision: 5},
	}
	for name, r := range ranges {
		_, err := f.kv.Range(ctx, r)
		require.Equal(t, codes.Unimplemented, status.Code(err), name)
		require.ErrorContains(t, err, "not served", name)
	}
	txns := map[string]*etcdserverpb.TxnRequest{
		"empty":              {},
		"two writes":         {Compare: compare("a", mod, equal), Success: []*etcdserverpb.RequestOp{opPut("a"), opPut("b")}},
		"other key":          {Compare: compare("a", mod, equal), Success: []*etcdserverpb.RequestOp{opPut("b")}},
		"read of other key":  {Compare: compare("a", mod, equal), Success: []*etcdserverpb.RequestOp{opPut("a")}, Failure: []*etcdserverpb.RequestOp{opGet("b")}},
		"write instead":      {Compare: compare("a", mod, equal), Success: []*etcdserverpb.RequestOp{opPut("a")}, Failure: []*etcdserverpb.RequestOp{opPut("a")}},
		"greater":            {Compare: compare("a", mod, etcdserverpb.Compare_GREATER), Success: []*etcdserverpb.RequestOp{opPut("a")}},
		"value":              {Compare: compare("a", etcdserverpb.Compare_VALUE, equal), Success: []*etcdserverpb.RequestOp{opPut("a")}},
		"get only":           {Compare: compare("a", mod, equal), Success: []*etcdserverpb.RequestOp{opGet("a")}},
		"without comparison": {Success: []*etcdserverpb.RequestOp{opPut("a")}},
		"no operation":       {Compare: compare("a", mod, equal), Success: []*etcdserverpb.RequestOp{{}}},
	}
	for name, r := range txns {
		_, err := f.kv.Txn(ctx, r)
		require.Equal(t, codes.Unimplemented, status.Code(err), name)
		require.ErrorContains(t, err, "not served", name)
	}
	_, err := f.kv.DeleteRange(ctx, &etcdserverpb.DeleteRangeRequest{Key: key, RangeEnd: end})
	require.ErrorContains(t, err, "deletion of a range: not served")
	_, err = etcdserverpb.NewMaintenanceClient(f.conn).Defragment(ctx, &etcdserverpb.DefragmentRequest{})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	resp, err := f.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	require.NoError(t, err)
	require.Zero(t, resp.Count)
}

func (f face) watch(t testing.TB, r *etcdserverpb.WatchCreateRequest) (etcdserverpb.Watch_WatchClient, *etcdserverpb.WatchResponse) {
	stream, err := etcdserverpb.NewWatchClient(f.conn).Watch(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: r}}))
	resp, err := stream.Recv()
	require.NoError(t, err)
	require.True(t, resp.Created)
	return stream, resp
}

func TestRefusedWatches(t *testing.T) {
	f := serve(t)
	for want, r := range map[string]*etcdserverpb.WatchCreateRequest{
		"not served":                  {Key: []byte("a"), Filters: []etcdserverpb.WatchCreateRequest_FilterType{etcdserverpb.WatchCreateRequest_NOPUT}},
		"range is empty":              {Key: []byte("b"), RangeEnd: []byte("a")},
		rpctypes.ErrCompacted.Error(): {Key: []byte("a"), StartRevision: -1},
		"watch ID is negative":        {Key: []byte("a"), WatchId: -5},
	} {
		stream, resp := f.watch(t, r)
		require.True(t, resp.Canceled, want)
		require.EqualValues(t, -1, resp.WatchId, want)
		require.Contains(t, resp.CancelReason, want)

		// The stream continues.
		require.NoError(t, stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{
			CreateRequest: &etcdserverpb.WatchCreateRequest{Key: []byte("a"), WatchId: 9},
		}}))
		resp, err := stream.Recv()
		require.NoError(t, err)
		require.True(t, resp.Created)
		require.False(t, resp.Canceled)
		require.EqualValues(t, 9, resp.WatchId)
		require.NoError(t, stream.CloseSend())
	}
}

// TestProgressByInterval checks that a watch of a quiet range receives the revision of writes
// elsewhere, and receives no revision twice.
func TestProgressByInterval(t *testing.T) {
	f := serve(t)
	stream, _ := f.watch(t, &etcdserverpb.WatchCreateRequest{Key: []byte("quiet"), ProgressNotify: true})
	var last int64
	for range 10 {
		resp, err := f.kv.Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("busy")})
		require.NoError(t, err)
		last = resp.Header.Revision
	}
	told := map[int64]bool{}
	for !told[last] {
		resp, err := stream.Recv()
		require.NoError(t, err)
		require.Empty(t, resp.Events)
		require.False(t, told[resp.Header.Revision])
		told[resp.Header.Revision] = true
	}
}

// TestStopEndsStreams checks that Stop waits neither for watches nor for streams that keep leases
// alive.
func TestStopEndsStreams(t *testing.T) {
	f := serve(t)
	watch, _ := f.watch(t, &etcdserverpb.WatchCreateRequest{Key: []byte("a")})
	leases, err := etcdserverpb.NewLeaseClient(f.conn).LeaseKeepAlive(t.Context())
	require.NoError(t, err)
	require.NoError(t, leases.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: 5}))
	_, err = leases.Recv()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stopped := make(chan struct{})
	go func() { f.stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-ctx.Done():
		require.NoError(t, errors.New("the stop waits"))
	}
	_, err = watch.Recv()
	require.Equal(t, rpctypes.ErrGRPCStopped.Error(), err.Error())
	_, err = leases.Recv()
	require.Equal(t, rpctypes.ErrGRPCStopped.Error(), err.Error())
}
