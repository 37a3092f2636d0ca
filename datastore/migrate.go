package datastore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

const (
	// All keys of Kubernetes are in [firstKey, endKey): its prefix begins with a slash. The
	// compactor's key is outside and belongs to its store.
	firstKey, endKey = "/", "0"
	// markerKey is a key in a store that is not complete yet. No server starts on such a store.
	markerKey = "mote/migration"
	// migratePage is the number of keys that are read at once. With keys of the largest size a page
	// has 150 MiB.
	migratePage = 100
	// migrateWriters is the number of parallel writers. More do not make any engine faster.
	migrateWriters = 16
)

// ErrNotEmpty refuses to migrate to a store that already has keys.
var ErrNotEmpty = errors.New("the target is not empty")

// Migration copies a store as it is at one revision. After an interruption, the next Migration
// starts again from the beginning.
//
// Objects get new revisions, because only mote's own engine lets a client choose them. All of the
// new revisions are above the source's last one. So a client that returns with an old revision is
// told to list again, and is never told that nothing happened.
type Migration struct {
	Source, Target *grpc.ClientConn
	// Revision is the source's revision, from Survey.
	Revision int64
	// Progress receives the name of the step, the amount done and the total. Only one goroutine
	// calls it at a time. It must be set.
	Progress func(step string, done, total int64)
}

// Survey returns the revision to migrate and how many keys the source has at it.
func Survey(ctx context.Context, source *grpc.ClientConn) (revision, keys int64, err error) {
	resp, err := etcdserverpb.NewKVClient(source).Range(ctx,
		&etcdserverpb.RangeRequest{Key: []byte(firstKey), RangeEnd: []byte(endKey), CountOnly: true})
	if err != nil {
		return 0, 0, fmt.Errorf("count the source's keys: %w", err)
	}
	return resp.Header.Revision, resp.Count, nil
}

// Run copies and compares. It returns how many keys the target has. It does not count keys whose
// lease ends meanwhile.
func (m Migration) Run(ctx context.Context) (int64, error) {
	source, target := etcdserverpb.NewKVClient(m.Source), etcdserverpb.NewKVClient(m.Target)
	marker, err := m.begin(ctx, target)
	if err != nil {
		return 0, err
	}
	if err := m.raise(ctx, target); err != nil {
		return 0, err
	}
	copied, err := m.copy(ctx, source, target)
	if err != nil {
		return 0, err
	}
	keys, err := m.compare(ctx, target, copied)
	if err != nil {
		return 0, err
	}
	// Compact the target where the engine supports it: no client can then read history from the
	// time when the target was being filled. kine compacts on its own schedule, and may reject as a
	// future revision the one that it has just returned.
	now, _, err := Survey(ctx, m.Target)
	if err != nil {
		return 0, err
	}
	_, err = target.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: now})
	if err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrFutureRev) {
		return 0, fmt.Errorf("compact the target: %w", err)
	}
	// From here on the target is complete.
	if err := removeKey(ctx, target, []byte(markerKey), marker); err != nil {
		return 0, fmt.Errorf("finish the target: %w", err)
	}
	return keys, nil
}

// begin ensures that the target is empty, and marks it as incomplete. It removes the keys of an
// unfinished migration.
func (m Migration) begin(ctx context.Context, target etcdserverpb.KVClient) (marker int64, err error) {
	found, err := target.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(markerKey)})
	if err != nil {
		return 0, fmt.Errorf("look at the target: %w", err)
	}
	if len(found.Kvs) > 0 {
		marker = found.Kvs[0].ModRevision
	}
	err = pages(ctx, target, 0, true, func(kvs []*mvccpb.KeyValue, count int64) error {
		for _, kv := range kvs {
			switch {
			case string(kv.Key) == healthKey:
			case marker == 0:
				return fmt.Errorf("%w: it holds some %d keys, such as %s", ErrNotEmpty, count, kv.Key)
			default:
				if err := removeKey(ctx, target, kv.Key, kv.ModRevision); err != nil {
					return fmt.Errorf("remove what an unfinished migration left: %w", err)
				}
			}
		}
		return nil
	})
	if err != nil || marker != 0 {
		return marker, err
	}
	if marker, err = writeKey(ctx, target, &mvccpb.KeyValue{Key: []byte(markerKey), Value: fmt.Append(nil, m.Revision)}, 0, 0); err != nil {
		return 0, fmt.Errorf("mark the target: %w", err)
	}
	return marker, nil
}

// raise writes to the target until its revision has reached the source's. A store that was created
// with Config.Above has reached it already.
func (m Migration) raise(ctx context.Context, target etcdserverpb.KVClient) error {
	resp, err := target.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(markerKey)})
	if err != nil {
		return fmt.Errorf("read the target's revision: %w", err)
	}
	total := m.Revision - resp.Header.Revision
	if total <= 0 {
		return nil
	}
	var done atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for i := range migrateWriters {
		group.Go(func() error {
			scratch := &mvccpb.KeyValue{Key: fmt.Appendf(nil, "%s/%d", markerKey, i)}
			last, err := modRevision(ctx, target, scratch.Key) // an unfinished migration may have left the key
			for err == nil && done.Add(1) <= total {
				if last, err = writeKey(ctx, target, scratch, last, 0); i == 0 {
					m.Progress("raising the revision", min(done.Load(), total), total)
				}
			}
			if err == nil && last != 0 {
				err = removeKey(ctx, target, scratch.Key, last)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("raise the target's revision: %w", err)
	}
	return nil
}

// copied is the expected content of one key in the target.
type copied struct {
	sum [sha256.Size]byte
	// leased is true if the key may be missing, because its lease may have ended.
	leased bool
}

// copy returns what it copied, by key. It leaves out keys whose lease has ended since the survey.
func (m Migration) copy(ctx context.Context, source, target etcdserverpb.KVClient) (map[string]copied, error) {
	all := make(map[string]copied)
	leases := leaseCopier{source: etcdserverpb.NewLeaseClient(m.Source), target: etcdserverpb.NewLeaseClient(m.Target), made: map[int64]leaseCopy{}}
	health, err := modRevision(ctx, target, []byte(healthKey)) // kine creates it
	if err != nil {
		return nil, fmt.Errorf("read from the target: %w", err)
	}
	done := int64(0)
	err = pages(ctx, source, m.Revision, false, func(kvs []*mvccpb.KeyValue, count int64) error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(migrateWriters)
		for _, kv := range kvs {
			lease, err := leases.copy(ctx, kv.Lease)
			if err != nil {
				return errors.Join(fmt.Errorf("copy the lease of %s: %w", kv.Key, err), group.Wait())
			}
			if lease.ended {
				continue
			}
			all[string(kv.Key)] = copied{sha256.Sum256(kv.Value), kv.Lease != 0}
			group.Go(func() error {
				guard := int64(0)
				if string(kv.Key) == healthKey {
					guard = health
				}
				_, err := writeKey(ctx, target, kv, guard, lease.id)
				if err != nil && !errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) { // the lease may have ended since
					return fmt.Errorf("copy %s: %w", kv.Key, err)
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		m.Progress("copying", done+int64(len(kvs)), done+count)
		done += int64(len(kvs))
		return nil
	})
	return all, err
}

// compare reads the target and returns how many keys it has. It fails on any key that was not
// copied, except kine's own health key.
func (m Migration) compare(ctx context.Context, target etcdserverpb.KVClient, want map[string]copied) (int64, error) {
	total, seen := int64(len(want)), int64(0)
	err := pages(ctx, target, 0, false, func(kvs []*mvccpb.KeyValue, _ int64) error {
		for _, kv := range kvs {
			one, known := want[string(kv.Key)]
			switch {
			case !known && string(kv.Key) == healthKey:
				continue
			case !known:
				return fmt.Errorf("the target has %s, which was not copied; is another server using it?", kv.Key)
			case one.sum != sha256.Sum256(kv.Value):
				return fmt.Errorf("the target has another value of %s than the source", kv.Key)
			}
			delete(want, string(kv.Key))
			seen++
		}
		m.Progress("comparing", seen, total)
		return nil
	})
	if err != nil {
		return seen, err
	}
	for key, one := range want {
		if !one.leased {
			return seen, fmt.Errorf("the target lacks %s, which was copied; is another server using it?", key)
		}
	}
	return seen, nil
}

// pages calls fn with all keys at a revision, in order. Revision 0 means the revision of the first
// page. count is the number of keys from the first one of the page to the end.
func pages(ctx context.Context, kv etcdserverpb.KVClient, revision int64, keysOnly bool, fn func(kvs []*mvccpb.KeyValue, count int64) error) error {
	next := []byte(firstKey)
	for more := true; more; {
		resp, err := kv.Range(ctx, &etcdserverpb.RangeRequest{
			Key: next, RangeEnd: []byte(endKey), Revision: revision, Limit: migratePage, KeysOnly: keysOnly,
		})
		if err != nil {
			return fmt.Errorf("list keys from %q on: %w", next, err)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		if len(resp.Kvs) == 0 {
			return nil
		}
		if err := fn(resp.Kvs, resp.Count); err != nil {
			return err
		}
		more, next = resp.More, append(bytes.Clone(resp.Kvs[len(resp.Kvs)-1].Key), 0)
	}
	return nil
}

func modRevision(ctx context.Context, kv etcdserverpb.KVClient, key []byte) (int64, error) {
	resp, err := kv.Range(ctx, &etcdserverpb.RangeRequest{Key: key})
	if err != nil || len(resp.Kvs) == 0 {
		return 0, err
	}
	return resp.Kvs[0].ModRevision, nil
}

// writeKey writes a key whose last revision is guard; 0 means that the key does not exist.
func writeKey(ctx context.Context, kv etcdserverpb.KVClient, what *mvccpb.KeyValue, guard, lease int64) (int64, error) {
	put := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{
		RequestPut: &etcdserverpb.PutRequest{Key: what.Key, Value: what.Value, Lease: lease},
	}}
	return guarded(ctx, kv, what.Key, guard, put)
}

func removeKey(ctx context.Context, kv etcdserverpb.KVClient, key []byte, guard int64) error {
	remove := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: key},
	}}
	_, err := guarded(ctx, kv, key, guard, remove)
	return err
}

// guarded executes op in the one form of transaction that all engines serve.
func guarded(ctx context.Context, kv etcdserverpb.KVClient, key []byte, guard int64, op *etcdserverpb.RequestOp) (int64, error) {
	resp, err := kv.Txn(ctx, &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{
			Key: key, Target: etcdserverpb.Compare_MOD, TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: guard},
		}},
		Success: []*etcdserverpb.RequestOp{op},
		Failure: []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: key}}}},
	})
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, fmt.Errorf("%s was written by somebody else", key)
	}
	return resp.Header.Revision, nil
}

// leaseCopier creates a lease in the target for each lease in the source, with the time that is
// left.
type leaseCopier struct {
	source, target etcdserverpb.LeaseClient
	made           map[int64]leaseCopy // by the lease's number in the source
}

// leaseCopy is the number of a lease in the target, and whether it has ended in the source.
type leaseCopy struct {
	id    int64
	ended bool
}

func (c leaseCopier) copy(ctx context.Context, id int64) (leaseCopy, error) {
	if made, known := c.made[id]; known || id == 0 {
		return made, nil
	}
	ttl := id // in kine, the ID of a lease is its time to live
	if left, err := c.source.LeaseTimeToLive(ctx, &etcdserverpb.LeaseTimeToLiveRequest{ID: id}); err == nil {
		if left.TTL < 0 {
			c.made[id] = leaseCopy{ended: true}
			return c.made[id], nil
		}
		ttl = max(left.TTL, 1)
	}
	granted, err := c.target.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{TTL: ttl})
	if err != nil {
		return leaseCopy{}, err
	}
	c.made[id] = leaseCopy{id: granted.ID}
	return c.made[id], nil
}
