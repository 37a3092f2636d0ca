package etcd

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// TestEncodedRange checks that a client decodes exactly the list that the store found, for all
// sizes, and with buffers that held other data before.
func TestEncodedRange(t *testing.T) {
	codec := codec{encoding.GetCodecV2(proto.Name), &buffers{}}
	var lists buffers
	for _, sizes := range [][]int{nil, {0}, {1, 1000, 2000}, {1020, largestPiece - 60, 5}, {3 * largestPiece, 0, 7}, {2 << 20, 100}} {
		answer := rangeEncoder{pool: &lists}
		want := &etcdserverpb.RangeResponse{Header: header(1 << 40), Count: int64(len(sizes)) + 1, More: len(sizes) != 1}
		for i, size := range sizes {
			kv := bolt.KV{Key: string(rune('a' + i)), Create: int64(i + 1), Mod: 1 << (20 * i), Version: int64(i), Lease: int64(-i)}
			if size > 0 {
				kv.Value = bytes.Repeat([]byte{byte(i + 1)}, size)
			}
			answer.add(&kv)
			want.Kvs = append(want.Kvs, keyValue(&kv))
		}
		data, err := codec.Marshal(answer.end(bolt.List{Revision: 1 << 40, Count: want.Count}, want.More))
		require.NoError(t, err)
		var got etcdserverpb.RangeResponse
		require.NoError(t, codec.Unmarshal(data, &got))
		require.True(t, want.String() == got.String(), sizes) // do not log both: they have megabytes
		data.Free()
	}
}
