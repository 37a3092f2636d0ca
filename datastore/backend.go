package datastore

import (
	"context"
	"errors"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// backend is the engine as kine's bridge wants it. It holds no state and makes no decisions.
type backend struct {
	store *bolt.Store
}

var _ server.Backend = backend{}

// Start implements server.Backend. The engine has been open since before the bridge was made.
func (b backend) Start(context.Context) error { return nil }

func (b backend) Get(ctx context.Context, key string, revision int64, keysOnly bool) (int64, *server.KeyValue, error) {
	rev, kvs, err := b.store.Range(ctx, bolt.Query{Key: key, Revision: revision, Limit: 1, KeysOnly: keysOnly})
	if err != nil || len(kvs) == 0 {
		return rev, nil, etcdError(err)
	}
	return rev, keyValue(kvs[0]), nil
}

func (b backend) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	rev, err := b.store.Create(ctx, key, value, lease)
	return rev, etcdError(err)
}

func (b backend) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	rev, kv, ok, err := b.store.Update(ctx, key, value, revision, lease)
	return rev, keyValue(kv), ok, etcdError(err)
}

// Delete implements server.Backend. A delete without guard succeeds also when there is nothing.
func (b backend) Delete(ctx context.Context, key string, revision int64) (int64, *server.KeyValue, bool, error) {
	rev, kv, ok, err := b.store.Delete(ctx, key, revision)
	return rev, keyValue(kv), ok || revision == 0, etcdError(err)
}

func (b backend) List(ctx context.Context, key, end string, limit, revision int64, keysOnly bool) (int64, []*server.KeyValue, error) {
	rev, kvs, err := b.store.Range(ctx, bolt.Query{Key: key, End: end, Limit: limit, Revision: revision, KeysOnly: keysOnly})
	out := make([]*server.KeyValue, len(kvs))
	for i, kv := range kvs {
		out[i] = keyValue(kv)
	}
	return rev, out, etcdError(err)
}

func (b backend) Count(ctx context.Context, key, end string, revision int64) (int64, int64, error) {
	rev, n, err := b.store.Count(ctx, bolt.Query{Key: key, End: end, Revision: revision})
	return rev, n, etcdError(err)
}

func (b backend) DbSize(context.Context) (int64, error) {
	size, err := b.store.Size()
	return size, etcdError(err)
}

func (b backend) CurrentRevision(context.Context) (int64, error) {
	return b.store.Revision(), nil
}

// Compact implements server.Backend. The apiserver calls it every five minutes for the revision of
// five minutes before; nobody else does.
func (b backend) Compact(ctx context.Context, revision int64) (int64, error) {
	rev, err := b.store.Compact(ctx, revision)
	return rev, etcdError(err)
}

func (b backend) WaitForSyncTo(revision int64) { b.store.WaitDelivered(revision) }

// watchBuffer is how many transactions a watch may lag before it is fed from the log instead.
const watchBuffer = 100

func (b backend) Watch(ctx context.Context, key, end string, revision int64) server.WatchResult {
	s := sink{events: make(chan []*server.Event, watchBuffer), failed: make(chan error, 1)}
	res := server.WatchResult{CurrentRevision: b.store.Revision(), Events: s.events, Errorc: s.failed}
	if key == "" {
		key, end = "\x00", "\x00" // kine's spelling of all keys is not etcd's
	}
	switch err := b.store.Watch(ctx, key, end, revision, s); {
	case errors.Is(err, bolt.ErrCompacted):
		res.CompactRevision = b.store.Compacted()
	case err != nil:
		s.End(err)
	}
	return res
}

// sink passes a watch's events to the bridge. They are in the channel when the engine counts them
// as delivered: progress notifications rely on it.
type sink struct {
	events chan []*server.Event
	failed chan error
}

func (s sink) Offer(events []bolt.Event) bool {
	if len(s.events) == cap(s.events) {
		return false
	}
	s.events <- serverEvents(events) // cannot block: the engine is the only sender
	return true
}

func (s sink) Send(ctx context.Context, events []bolt.Event) bool {
	select {
	case s.events <- serverEvents(events):
		return true
	case <-ctx.Done():
		return false
	}
}

func (s sink) End(err error) {
	if err != nil {
		s.failed <- etcdError(err)
	}
	close(s.events)
}

func serverEvents(events []bolt.Event) []*server.Event {
	out := make([]*server.Event, len(events))
	for i, e := range events {
		out[i] = &server.Event{Delete: e.Deleted, Create: e.Prev == nil, KV: keyValue(e.KV), PrevKV: keyValue(e.Prev)}
	}
	return out
}

func keyValue(kv *bolt.KV) *server.KeyValue {
	if kv == nil {
		return nil
	}
	return &server.KeyValue{
		Key: kv.Key, Value: kv.Value, Version: kv.Version,
		CreateRevision: kv.Create, ModRevision: kv.Mod, Lease: kv.Lease,
	}
}

// etcdError says in etcd's words what the engine said. The bridge compares some of them by value.
func etcdError(err error) error {
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, bolt.ErrExists):
		return server.ErrKeyExists
	case errors.Is(err, bolt.ErrCompacted):
		return server.ErrCompacted
	case errors.Is(err, bolt.ErrFutureRevision):
		return server.ErrFutureRev
	case errors.Is(err, bolt.ErrNoSpace):
		return rpctypes.ErrGRPCNoSpace
	case errors.Is(err, bolt.ErrInvalidKey):
		return status.Error(codes.InvalidArgument, err.Error())
	default:
		return status.Error(codes.Unavailable, err.Error())
	}
}
