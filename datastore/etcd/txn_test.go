package etcd

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// FuzzTxn checks that any transaction that the wire can carry either has the served form or is
// refused.
func FuzzTxn(f *testing.F) {
	key := []byte("key")
	get := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: key}}}
	for _, op := range []*etcdserverpb.RequestOp{
		{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: key, Value: []byte("value")}}},
		{Request: &etcdserverpb.RequestOp_RequestDeleteRange{RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: key}}},
	} {
		seed, err := (&etcdserverpb.TxnRequest{
			Compare: []*etcdserverpb.Compare{{Key: key, Target: etcdserverpb.Compare_MOD, TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: 7}}},
			Success: []*etcdserverpb.RequestOp{op}, Failure: []*etcdserverpb.RequestOp{get},
		}).Marshal()
		require.NoError(f, err)
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r etcdserverpb.TxnRequest
		if r.Unmarshal(b) != nil {
			return
		}
		parsed, err := parse(&r)
		if err != nil {
			require.Contains(t, []codes.Code{codes.Unimplemented, codes.InvalidArgument}, status.Code(err))
			return
		}
		require.NotEmpty(t, parsed.write.Key)
		require.NotNil(t, parsed.write.Guard)
		require.NotEqual(t, parsed.put == nil, parsed.remove == nil)
	})
}
