package etcd

import (
	"bytes"
	"context"
	"encoding/binary"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// message is a request of any kind.
type message interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// kinds returns the requests that FuzzFace sends; the number of a kind is its index.
func kinds() []message {
	return []message{
		&etcdserverpb.PutRequest{}, &etcdserverpb.DeleteRangeRequest{}, &etcdserverpb.TxnRequest{}, &etcdserverpb.RangeRequest{},
		&etcdserverpb.CompactionRequest{}, &etcdserverpb.LeaseGrantRequest{}, &etcdserverpb.LeaseRevokeRequest{},
		&etcdserverpb.LeaseTimeToLiveRequest{}, &etcdserverpb.WatchRequest{}, &etcdserverpb.LeaseKeepAliveRequest{}, &etcdserverpb.AlarmRequest{},
	}
}

// script encodes requests in FuzzFace's format: kind, length (2 bytes), message.
func script(t testing.TB, list ...message) []byte {
	var out []byte
	for _, m := range list {
		b, err := m.Marshal()
		require.NoError(t, err)
		kind := slices.IndexFunc(kinds(), func(k message) bool { return reflect.TypeOf(k) == reflect.TypeOf(m) })
		out = binary.BigEndian.AppendUint16(append(out, byte(kind)), uint16(len(b)))
		out = append(out, b...)
	}
	return out
}

// FuzzFace sends arbitrary requests to the handlers of a store. No handler may panic, and the keys
// must agree with a model.
func FuzzFace(f *testing.F) {
	key := []byte("key")
	put := &etcdserverpb.PutRequest{Key: key, Value: []byte("value"), PrevKv: true}
	get := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: key}}}
	txn := func(revision int64, op *etcdserverpb.RequestOp) *etcdserverpb.TxnRequest {
		return &etcdserverpb.TxnRequest{
			Compare: []*etcdserverpb.Compare{{Key: key, Target: etcdserverpb.Compare_MOD, TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: revision}}},
			Success: []*etcdserverpb.RequestOp{op}, Failure: []*etcdserverpb.RequestOp{get},
		}
	}
	opPut := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: put}}
	opDelete := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: key}}}
	f.Add(script(f, txn(0, opPut), txn(2, opPut), &etcdserverpb.CompactionRequest{Revision: 2}, txn(3, opDelete), put))
	f.Add(script(f, &etcdserverpb.LeaseGrantRequest{ID: 5, TTL: 100}, &etcdserverpb.PutRequest{Key: key, Lease: 5}, &etcdserverpb.LeaseKeepAliveRequest{ID: 5},
		&etcdserverpb.LeaseTimeToLiveRequest{ID: 5, Keys: true}, &etcdserverpb.LeaseRevokeRequest{ID: 5}, &etcdserverpb.DeleteRangeRequest{Key: key}))
	f.Add(script(f, put, &etcdserverpb.RangeRequest{Key: key, RangeEnd: []byte{0}, Revision: 2, Limit: 1}, &etcdserverpb.AlarmRequest{},
		&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: &etcdserverpb.WatchCreateRequest{Key: key, StartRevision: 1, PrevKv: true}}},
		&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CancelRequest{CancelRequest: &etcdserverpb.WatchCancelRequest{}}},
		&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		store, err := bolt.Open(filepath.Join(t.TempDir(), "state.db"), bolt.Options{})
		require.NoError(t, err)
		p := &play{T: t, server: Register(grpc.NewServer(), store), keys: map[string]*mvccpb.KeyValue{}, revision: store.Revision()}
		for len(b) >= 3 {
			kind, size := int(b[0])%len(kinds()), int(binary.BigEndian.Uint16(b[1:]))
			b = b[3:]
			size = min(size, len(b))
			m := kinds()[kind]
			if m.Unmarshal(b[:size]) == nil {
				p.send(m)
			}
			b = b[size:]
		}
		p.compare()
		p.stream()
		require.NoError(t, store.Check())
		require.NoError(t, store.Close())
	})
}

// play is a store and its expected contents.
type play struct {
	*testing.T
	server   *Server
	keys     map[string]*mvccpb.KeyValue
	revision int64
	// watches and renewals are sent at the end.
	watches  []*etcdserverpb.WatchRequest
	renewals []*etcdserverpb.LeaseKeepAliveRequest
}

func (p *play) send(m message) {
	ctx := context.Background()
	var err error
	switch r := m.(type) {
	case *etcdserverpb.PutRequest:
		if _, err = (kv{p.server}).Put(ctx, r); err == nil {
			p.put(r)
		}
	case *etcdserverpb.DeleteRangeRequest:
		if _, err = (kv{p.server}).DeleteRange(ctx, r); err == nil {
			p.remove(string(r.Key))
		}
	case *etcdserverpb.TxnRequest:
		var resp *etcdserverpb.TxnResponse
		if resp, err = (kv{p.server}).Txn(ctx, r); err == nil {
			p.txn(r, resp)
		}
	case *etcdserverpb.RangeRequest:
		_, err = kv{p.server}.Range(ctx, r)
	case *etcdserverpb.CompactionRequest:
		_, err = kv{p.server}.Compact(ctx, r)
	case *etcdserverpb.LeaseGrantRequest:
		r.TTL = max(r.TTL, 1000) // otherwise it might end during the test
		_, err = lease{p.server}.LeaseGrant(ctx, r)
	case *etcdserverpb.LeaseRevokeRequest:
		if _, err = (lease{p.server}).LeaseRevoke(ctx, r); err == nil {
			for key, one := range p.keys {
				if one.Lease == r.ID {
					p.remove(key)
				}
			}
		}
	case *etcdserverpb.LeaseTimeToLiveRequest:
		_, err = lease{p.server}.LeaseTimeToLive(ctx, r)
	case *etcdserverpb.AlarmRequest:
		_, err = (&maintenance{Server: p.server}).Alarm(ctx, r)
	case *etcdserverpb.WatchRequest:
		p.watches = append(p.watches, r)
	case *etcdserverpb.LeaseKeepAliveRequest:
		p.renewals = append(p.renewals, r)
	}
	require.NotContains(p, []codes.Code{codes.Unknown, codes.Internal, codes.DataLoss, codes.Unavailable}, status.Code(err), "%v: %v", m, err)
}

func (p *play) put(r *etcdserverpb.PutRequest) {
	p.revision++
	one := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, Lease: r.Lease, CreateRevision: p.revision, ModRevision: p.revision, Version: 1}
	if old := p.keys[string(r.Key)]; old != nil {
		one.CreateRevision, one.Version = old.CreateRevision, old.Version+1
	}
	p.keys[string(r.Key)] = one
}

func (p *play) remove(key string) {
	if p.keys[key] != nil {
		p.revision++
		delete(p.keys, key)
	}
}

func (p *play) txn(r *etcdserverpb.TxnRequest, resp *etcdserverpb.TxnResponse) {
	c := r.Compare[0]
	old := p.keys[string(c.Key)]
	if old == nil {
		old = &mvccpb.KeyValue{}
	}
	want := map[etcdserverpb.Compare_CompareTarget]bool{
		etcdserverpb.Compare_MOD:     c.GetModRevision() == old.ModRevision,
		etcdserverpb.Compare_CREATE:  c.GetCreateRevision() == old.CreateRevision,
		etcdserverpb.Compare_VERSION: c.GetVersion() == old.Version,
	}[c.Target]
	require.Equal(p, want, resp.Succeeded)
	switch {
	case !want:
	case r.Success[0].GetRequestPut() != nil:
		p.put(r.Success[0].GetRequestPut())
	default:
		p.remove(string(r.Success[0].GetRequestDeleteRange().Key))
	}
}

func (p *play) compare() {
	answer, err := kv{p.server}.Range(context.Background(), &etcdserverpb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	require.NoError(p, err)
	var resp etcdserverpb.RangeResponse
	require.NoError(p, resp.Unmarshal(answer.data.Materialize()))
	answer.data.Free()
	require.Equal(p, p.revision, resp.Header.Revision)
	require.Len(p, resp.Kvs, len(p.keys))
	for _, got := range resp.Kvs {
		want := *p.keys[string(got.Key)]
		require.True(p, bytes.Equal(want.Value, got.Value))
		want.Value = got.Value
		require.Equal(p, want.String(), got.String())
	}
}

// stream sends the requests that need a stream.
func (p *play) stream() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	_ = watch{p.server}.Watch(&watchStream{requests[etcdserverpb.WatchRequest]{list: p.watches, ctx: ctx, end: cancel}})
	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	_ = lease{p.server}.LeaseKeepAlive(&renewStream{requests[etcdserverpb.LeaseKeepAliveRequest]{list: p.renewals, ctx: ctx, end: cancel}})
}

// requests is the receiving half of a stream, which ends after its last request.
type requests[T any] struct {
	grpc.ServerStream
	list []*T
	ctx  context.Context
	end  func()
}

func (s *requests[T]) Context() context.Context { return s.ctx }

func (s *requests[T]) Recv() (*T, error) {
	if len(s.list) == 0 {
		s.end()
		return nil, s.ctx.Err()
	}
	next := s.list[0]
	s.list = s.list[1:]
	return next, nil
}

type watchStream struct {
	requests[etcdserverpb.WatchRequest]
}

func (s *watchStream) Send(*etcdserverpb.WatchResponse) error { return nil }

type renewStream struct {
	requests[etcdserverpb.LeaseKeepAliveRequest]
}

func (s *renewStream) Send(*etcdserverpb.LeaseKeepAliveResponse) error { return nil }
