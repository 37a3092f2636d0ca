package etcd

import (
	"bytes"
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// Txn serves the one form that Kubernetes uses, in which all operations name the same key:
//
//	if mod, create or version of KEY = N  then put or delete KEY  [else get KEY]
func (s kv) Txn(ctx context.Context, r *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	t, err := parse(r)
	if err != nil {
		return nil, err
	}
	res, err := s.write(ctx, r, t.write)
	if err != nil {
		return nil, err
	}
	resp := &etcdserverpb.TxnResponse{Header: header(res.Revision), Succeeded: res.OK}
	var op etcdserverpb.ResponseOp
	switch {
	case !res.OK && !t.get:
		return resp, nil
	case !res.OK:
		op.Response = &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: getResponse(res)}
	case t.put != nil:
		op.Response = &etcdserverpb.ResponseOp_ResponsePut{ResponsePut: putResponse(t.put, res)}
	default:
		op.Response = &etcdserverpb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: deleteResponse(t.remove, res)}
	}
	resp.Responses = []*etcdserverpb.ResponseOp{&op}
	return resp, nil
}

// txn is a transaction of the form that is served. Exactly one of put and remove is set.
type txn struct {
	write  bolt.Write
	put    *etcdserverpb.PutRequest
	remove *etcdserverpb.DeleteRangeRequest
	get    bool // get the key when the guard does not hold
}

func parse(r *etcdserverpb.TxnRequest) (txn, error) {
	var t txn
	if len(r.Compare) != 1 || len(r.Success) != 1 || len(r.Failure) > 1 {
		return t, unserved("transaction of other than one comparison, one write and at most one get")
	}
	guard, err := guard(r.Compare[0])
	if err != nil {
		return t, err
	}
	t.put, t.remove = r.Success[0].GetRequestPut(), r.Success[0].GetRequestDeleteRange()
	switch {
	case t.put != nil:
		t.write, err = put(t.put)
	case t.remove != nil:
		t.write, err = remove(t.remove)
	default:
		err = unserved("transaction that does not begin with a put or a deletion")
	}
	if err != nil {
		return t, err
	}
	t.write.Guard = guard
	key := []byte(t.write.Key)
	if len(r.Failure) == 1 {
		get := r.Failure[0].GetRequestRange()
		if get == nil || !plainGet(get) || !bytes.Equal(get.Key, key) {
			return t, unserved("transaction whose alternative is not a get of its key")
		}
		t.get = true
	}
	if !bytes.Equal(r.Compare[0].Key, key) {
		return t, unserved("transaction over several keys")
	}
	return t, nil
}

func guard(c *etcdserverpb.Compare) (*bolt.Guard, error) {
	if c.Result != etcdserverpb.Compare_EQUAL || len(c.RangeEnd) > 0 {
		return nil, unserved("comparison other than = of one key")
	}
	switch c.Target {
	case etcdserverpb.Compare_MOD:
		return &bolt.Guard{Field: bolt.GuardMod, Value: c.GetModRevision()}, nil
	case etcdserverpb.Compare_CREATE:
		return &bolt.Guard{Field: bolt.GuardCreate, Value: c.GetCreateRevision()}, nil
	case etcdserverpb.Compare_VERSION:
		return &bolt.Guard{Field: bolt.GuardVersion, Value: c.GetVersion()}, nil
	default:
		return nil, unserved("comparison of a key's " + c.Target.String())
	}
}

// plainGet reports whether r reads the latest version of one key.
func plainGet(r *etcdserverpb.RangeRequest) bool {
	return len(r.RangeEnd) == 0 && r.Revision <= 0 && !r.KeysOnly && !r.CountOnly &&
		r.MinModRevision == 0 && r.MaxModRevision == 0 && r.MinCreateRevision == 0 && r.MaxCreateRevision == 0
}

func getResponse(res bolt.Result) *etcdserverpb.RangeResponse {
	resp := &etcdserverpb.RangeResponse{Header: header(res.Revision)}
	if res.Prev != nil {
		resp.Kvs, resp.Count = []*mvccpb.KeyValue{keyValue(res.Prev)}, 1
	}
	return resp
}
