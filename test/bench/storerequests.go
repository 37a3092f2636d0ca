package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// request is one kind of request, as Kubernetes sends it.
type request struct {
	what string
	// A number of clients send count requests; each waits for its answers.
	clients, count int
	// do sends one request; writes marks the requests whose events the watch receives.
	do     func(ctx context.Context, b *bed, i int) error
	writes bool
	// etcd and kine are the target factors of their time compared to mote's; 0 means no target.
	etcd, kine float64
}

// many is the number of clients of a burst, and freshKeys the number of keys that they create,
// change and remove.
const (
	many      = 16
	freshKeys = 2000
	freshFew  = 200
	page      = 500
	// pageBytes limits a page of large values, as the apiserver's users do by their limits.
	pageBytes = 8 << 20
)

// requests returns the kinds in the order of measurement: keys are created, then changed, then
// removed.
func requests() []request {
	return []request{
		{what: "create", clients: many, count: freshKeys, do: create, writes: true, etcd: 2, kine: 4},
		{what: "update", clients: many, count: freshKeys, do: update, writes: true, etcd: 2, kine: 4},
		{what: "delete", clients: many, count: freshKeys, do: remove, writes: true, etcd: 2, kine: 4},
		{what: "create", clients: 1, count: freshFew, do: create, writes: true, etcd: 1},
		{what: "update", clients: 1, count: freshFew, do: update, writes: true, etcd: 1},
		{what: "delete", clients: 1, count: freshFew, do: remove, writes: true, etcd: 1},
		{what: "get", clients: many, count: 4000, do: get, etcd: 1},
		{what: "get", clients: 1, count: 500, do: get, etcd: 1},
		{what: "list of 500", clients: many, count: 16, do: list, etcd: 1},
		{what: "list of 500", clients: 1, count: 10, do: list, etcd: 1},
		{what: "list of a namespace", clients: many, count: 160, do: listNamespace, etcd: 1},
		{what: "list of a namespace", clients: 1, count: 60, do: listNamespace, etcd: 1},
		{what: "count", clients: many, count: 48, do: count, etcd: 1},
		{what: "count", clients: 1, count: 20, do: count, etcd: 1},
	}
}

func create(ctx context.Context, b *bed, i int) error {
	revision, err := b.write(ctx, freshKey(i), 0, clientv3.OpPut(freshKey(i), b.stamped()))
	b.revisions[i] = revision
	return err
}

func update(ctx context.Context, b *bed, i int) error {
	revision, err := b.write(ctx, freshKey(i), b.revisions[i], clientv3.OpPut(freshKey(i), b.stamped()))
	b.revisions[i] = revision
	return err
}

func remove(ctx context.Context, b *bed, i int) error {
	_, err := b.write(ctx, freshKey(i), b.revisions[i], clientv3.OpDelete(freshKey(i)))
	return err
}

// scattered spreads successive numbers over the keys.
func (b *bed) scattered(i int) int { return i * 7919 % b.keys }

func get(ctx context.Context, b *bed, i int) error {
	resp, err := b.client.Get(ctx, filledKey(b.scattered(i)))
	return expect(resp, err, 1)
}

// list reads a page in the middle of a long list, at the revision of the list's start.
func list(ctx context.Context, b *bed, i int) error {
	from := b.scattered(i) / 2
	resp, err := b.client.Get(ctx, filledKey(from), clientv3.WithRange(clientv3.GetPrefixRangeEnd(resource)),
		clientv3.WithLimit(int64(b.page())), clientv3.WithRev(b.last.Load()))
	return expect(resp, err, min(b.page(), b.keys-from))
}

func (b *bed) page() int { return max(1, min(page, pageBytes/len(b.value))) }

func listNamespace(ctx context.Context, b *bed, i int) error {
	namespace := b.scattered(i) / keysOfNamespace
	resp, err := b.client.Get(ctx, fmt.Sprintf("%sns-%05d/", resource, namespace), clientv3.WithPrefix())
	return expect(resp, err, min(keysOfNamespace, b.keys-namespace*keysOfNamespace))
}

func count(ctx context.Context, b *bed, _ int) error {
	resp, err := b.client.Get(ctx, resource, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err == nil && resp.Count < int64(b.keys) {
		return fmt.Errorf("counted %d keys, there are %d", resp.Count, b.keys)
	}
	return err
}

func expect(resp *clientv3.GetResponse, err error, keys int) error {
	if err == nil && len(resp.Kvs) != keys {
		return fmt.Errorf("got %d keys, there are %d", len(resp.Kvs), keys)
	}
	return err
}

// trialOfRequests is one engine's turn in one round.
type trialOfRequests struct {
	// each is the total time divided by the number of requests; took has each client's waiting
	// time.
	each time.Duration
	took []time.Duration
	// ages are the times from the sending of a write to its event in the watch.
	ages []time.Duration
	// cpu and written are the server's for each request.
	cpu     time.Duration
	written float64
}

type requestResult struct {
	request
	trials map[string][]trialOfRequests // by engine
}

// aftermath is the time that a server is left idle after a burst of writes. Work that it defers
// until then counts as its own cost, and does not slow down the server that is measured next.
const aftermath = 1500 * time.Millisecond

// measure sends the requests and waits until the watch has received their events.
func (b *bed) measure(ctx context.Context, r request) (trialOfRequests, error) {
	var t trialOfRequests
	if r.writes && b.watch == nil {
		b.startWatch(ctx)
	}
	b.revisions = slices.Grow(b.revisions, r.count)[:max(len(b.revisions), r.count)]
	runtime.GC() // the garbage of the last trial must not count here
	before, err := b.look()
	if err != nil {
		return t, err
	}
	began := time.Now()
	t.took, err = b.each(ctx, r.clients, r.count, func(ctx context.Context, _, i int) error { return r.do(ctx, b, i) })
	t.each = time.Since(began) / time.Duration(r.count)
	if err != nil {
		return t, err
	}
	if r.writes {
		if t.ages, err = b.watch.take(b.last.Load()); err != nil {
			return t, err
		}
	}
	if r.writes && r.clients > 1 {
		if err := pause(ctx, aftermath); err != nil {
			return t, err
		}
	}
	after, err := b.look()
	t.cpu = (after.CPU - before.CPU) / time.Duration(r.count)
	t.written = float64(after.Written-before.Written) / float64(r.count)
	return t, err
}
