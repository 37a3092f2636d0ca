package sql

import (
	"context"
	"slices"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// maxRequest is the largest write in bytes: etcd's limit, about which Kubernetes tells its users.
const maxRequest = 1536 << 10

// backend is kine's, as etcd would do what kine does otherwise.
type backend struct {
	server.Backend
	// stray says that watches are sent more than was asked for: over NATS, all keys beside the one that is watched.
	stray bool
}

// Watch from no revision begins with what comes next; kine would send all that it has of the past.
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

// filter ends when kine closes its channel, which it does when the watch ends. The reader reads until then.
func filter(key, end string, all <-chan []*server.Event, wanted chan<- []*server.Event) {
	defer close(wanted)
	for events := range all {
		events = slices.DeleteFunc(events, func(e *server.Event) bool { return !e.InRange(key, end) })
		if len(events) > 0 {
			wanted <- events
		}
	}
}

// Create refuses what is too large for etcd; kine has no limit.
func (b backend) Create(ctx context.Context, key string, value []byte, lease int64) (int64, error) {
	if len(key)+len(value) > maxRequest {
		return 0, rpctypes.ErrGRPCRequestTooLarge
	}
	return b.Backend.Create(ctx, key, value, lease)
}

// Update refuses what is too large for etcd.
func (b backend) Update(ctx context.Context, key string, value []byte, revision, lease int64) (int64, *server.KeyValue, bool, error) {
	if len(key)+len(value) > maxRequest {
		return 0, nil, false, rpctypes.ErrGRPCRequestTooLarge
	}
	return b.Backend.Update(ctx, key, value, revision, lease)
}
