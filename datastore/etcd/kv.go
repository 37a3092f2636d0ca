package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/mote-k8s/mote/datastore/bolt"
)

type kv struct{ *Server }

var _ kvServer = kv{}

// Range serves gets, lists and counts. All reads are alike, serializable or not, because there is
// only one member.
func (s kv) Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*encoded, error) {
	sorted := r.SortOrder == etcdserverpb.RangeRequest_DESCEND ||
		r.SortOrder != etcdserverpb.RangeRequest_NONE && r.SortTarget != etcdserverpb.RangeRequest_KEY
	switch {
	case len(r.Key) == 0:
		return nil, rpctypes.ErrGRPCEmptyKey
	case sorted:
		return nil, unserved("range that is sorted otherwise than by key")
	case r.MinModRevision != 0, r.MaxModRevision != 0, r.MinCreateRevision != 0, r.MaxCreateRevision != 0:
		return nil, unserved("range between revisions")
	}
	answer := rangeEncoder{pool: &s.lists}
	given := int64(0)
	list, err := s.store.Scan(ctx, bolt.Query{
		Key: string(r.Key), End: string(r.RangeEnd), Revision: max(r.Revision, 0), Limit: max(r.Limit, 0),
		KeysOnly: r.KeysOnly, CountOnly: r.CountOnly,
	}, func(kv *bolt.KV) error {
		given++
		answer.add(kv)
		return nil
	})
	if err != nil {
		answer.free()
		return nil, protocolError(err)
	}
	return answer.end(list, !r.CountOnly && given < list.Count), nil
}

// Put writes one key without a condition.
func (s kv) Put(ctx context.Context, r *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error) {
	w, err := put(r)
	if err != nil {
		return nil, err
	}
	res, err := s.write(ctx, r, w)
	if err != nil {
		return nil, err
	}
	return putResponse(r, res), nil
}

// DeleteRange removes one key without a condition.
func (s kv) DeleteRange(ctx context.Context, r *etcdserverpb.DeleteRangeRequest) (*etcdserverpb.DeleteRangeResponse, error) {
	w, err := remove(r)
	if err != nil {
		return nil, err
	}
	res, err := s.write(ctx, r, w)
	if err != nil {
		return nil, err
	}
	return deleteResponse(r, res), nil
}

// Compact removes history. It always frees the space soon after it has hidden the history, even if
// the request does not ask for physical compaction.
func (s kv) Compact(ctx context.Context, r *etcdserverpb.CompactionRequest) (*etcdserverpb.CompactionResponse, error) {
	revision, err := s.store.Compact(ctx, r.Revision)
	if err != nil {
		return nil, protocolError(err)
	}
	return &etcdserverpb.CompactionResponse{Header: header(revision)}, nil
}

func (s kv) write(ctx context.Context, r interface{ Size() int }, w bolt.Write) (bolt.Result, error) {
	if r.Size()+envelope > MaxRequest {
		return bolt.Result{}, rpctypes.ErrGRPCRequestTooLarge
	}
	res, err := s.store.Write(ctx, w)
	return res, protocolError(err)
}

func put(r *etcdserverpb.PutRequest) (bolt.Write, error) {
	switch {
	case len(r.Key) == 0:
		return bolt.Write{}, rpctypes.ErrGRPCEmptyKey
	case r.IgnoreLease, r.IgnoreValue:
		return bolt.Write{}, unserved("put that keeps the lease or the value")
	}
	// nil would be read back as a key without a value, which is not what was written.
	value := r.Value
	if value == nil {
		value = []byte{}
	}
	return bolt.Write{Key: string(r.Key), Value: value, Lease: r.Lease}, nil
}

func putResponse(r *etcdserverpb.PutRequest, res bolt.Result) *etcdserverpb.PutResponse {
	resp := &etcdserverpb.PutResponse{Header: header(res.Revision)}
	if r.PrevKv {
		resp.PrevKv = keyValue(res.Prev)
	}
	return resp
}

func remove(r *etcdserverpb.DeleteRangeRequest) (bolt.Write, error) {
	switch {
	case len(r.Key) == 0:
		return bolt.Write{}, rpctypes.ErrGRPCEmptyKey
	case len(r.RangeEnd) > 0:
		return bolt.Write{}, unserved("deletion of a range")
	}
	return bolt.Write{Key: string(r.Key), Delete: true}, nil
}

func deleteResponse(r *etcdserverpb.DeleteRangeRequest, res bolt.Result) *etcdserverpb.DeleteRangeResponse {
	resp := &etcdserverpb.DeleteRangeResponse{Header: header(res.Revision)}
	if res.Prev != nil {
		resp.Deleted = 1
		if r.PrevKv {
			resp.PrevKvs = []*mvccpb.KeyValue{keyValue(res.Prev)}
		}
	}
	return resp
}

func keyValue(kv *bolt.KV) *mvccpb.KeyValue {
	if kv == nil {
		return nil
	}
	return &mvccpb.KeyValue{
		Key: []byte(kv.Key), Value: kv.Value, Version: kv.Version,
		CreateRevision: kv.Create, ModRevision: kv.Mod, Lease: kv.Lease,
	}
}
