package sql

import (
	"context"
	"slices"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// maxRequest is the largest write in bytes: etcd's limit, which Kubernetes documents to its users.
const maxRequest = 1536 << 10

// backend is kine's backend, corrected where kine differs from etcd.
type backend struct {
	server.Backend
	// stray is true if watches receive more events than they asked for: over NATS, those of all
	// keys and not only of the watched one.
	stray bool
}

// Watch without a revision begins with the next event. kine would send its whole history.
func (b backend) Watch(ctx context.Context, key, end string, revision int64) server.WatchResult {
	if revision == 0 {
		if current, err := b.CurrentRevision(ctx); err == nil {
			revision = current + 1
		}
	}
	result := b.Backend.Watch(ctx, key, end, revision)
	if b.stray && result.CompactRevision == 0 {
		wanted := make(chan []*server.Event)
		go filter(key, end, result.Events, wanted)
		result.Events = wanted
	}
	return result
}

// filter passes on the events of a range. It ends when kine closes its channel, which it does when
// the watch ends. The reader reads until then.
func filter(key, end string, all <-chan []*server.Event, wanted chan<- []*server.Event) {
	defer close(wanted)
	for events := range all {
		events = slices.DeleteFunc(events, func(e *server.Event) bool { return !e.InRange(key, end) })
		if len(events) > 0 {
			wanted <- events
		}
	}
}

// Create refuses values that are too large for etcd; kine has no limit.
func (b backend) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	if len(key)+len(value) > maxRequest {
		return 0, rpctypes.ErrGRPCRequestTooLarge
	}
	return b.Backend.Create(ctx, key, value, lease)
}

// Update refuses values that are too large for etcd.
func (b backend) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	if len(key)+len(value) > maxRequest {
		return 0, nil, false, rpctypes.ErrGRPCRequestTooLarge
	}
	return b.Backend.Update(ctx, key, value, revision, lease)
}
