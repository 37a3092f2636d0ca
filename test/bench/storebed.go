package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// resource is the prefix of the keys that are measured; the watch covers all of it.
	resource = "/registry/pods/"
	// keysOfNamespace is the number of keys of a namespace.
	keysOfNamespace = 100
	// loaders is the number of clients that fill a store.
	loaders = 64
)

func filledKey(i int) string {
	return fmt.Sprintf("%sns-%05d/pod-%07d", resource, i/keysOfNamespace, i)
}
func freshKey(i int) string { return fmt.Sprintf("%sfresh/pod-%07d", resource, i) }

// bed is an engine with keys in it, a watch on them, and the moment that times are counted from.
type bed struct {
	*storeServer
	dir   string
	value []byte
	keys  int
	epoch time.Time
	watch *bedWatch
	// revisions are those of the fresh keys; each belongs to the client that writes the key.
	revisions []int64
	last      atomic.Int64 // the highest revision in an answer to a write
	compactTo int64
}

func (b *storeBench) openBed(ctx context.Context, e engine, name string, size int) (*bed, error) {
	dir := filepath.Join(b.work, e.name+"-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	server, err := e.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	one := &bed{storeServer: server, dir: dir, value: make([]byte, size), epoch: time.Now()}
	for i := range one.value {
		one.value[i] = byte(i)
	}
	return one, nil
}

func (b *bed) close() error {
	if b.watch != nil {
		b.watch.close()
	}
	return errors.Join(b.stop(), os.RemoveAll(b.dir))
}

// stamped returns a value that contains its time of sending.
func (b *bed) stamped() string {
	value := append([]byte{}, b.value...)
	binary.BigEndian.PutUint64(value, uint64(time.Since(b.epoch)))
	return string(value)
}

// fill creates n keys that stay.
func (b *bed) fill(ctx context.Context, n int) error {
	from := b.keys
	b.keys += n
	_, err := b.each(ctx, loaders, n, func(ctx context.Context, _, i int) error {
		_, err := b.write(ctx, filledKey(from+i), 0, clientv3.OpPut(filledKey(from+i), b.stamped()))
		return err
	})
	return err
}

// write sends the apiserver's request for a change: op if the key's revision equals guard.
func (b *bed) write(ctx context.Context, key string, guard int64, op clientv3.Op) (int64, error) {
	txn := b.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", guard)).Then(op)
	if guard != 0 {
		txn = txn.Else(clientv3.OpGet(key))
	}
	resp, err := txn.Commit()
	if err != nil {
		return 0, err
	}
	if !resp.Succeeded {
		return 0, fmt.Errorf("%s is not as old as %d", key, guard)
	}
	revision := resp.Header.Revision
	for {
		last := b.last.Load()
		if last >= revision || b.last.CompareAndSwap(last, revision) {
			return revision, nil
		}
	}
}

// each calls fn n times from a number of clients that wait for their answers, and returns how long
// each call took.
func (b *bed) each(ctx context.Context, clients, n int, fn func(ctx context.Context, client, i int) error) ([]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	took := make([]time.Duration, n)
	var next atomic.Int64
	var group sync.WaitGroup
	for c := range clients {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				began := time.Now()
				if err := fn(ctx, c, i); err != nil {
					cancel(err)
				}
				took[i] = time.Since(began)
			}
		})
	}
	group.Wait()
	return took, context.Cause(ctx)
}

// compact removes the history before the last round, as the apiserver does with history older than
// five minutes.
func (b *bed) compact(ctx context.Context) error {
	if b.compactTo > 0 {
		if _, err := b.client.Compact(ctx, b.compactTo); err != nil {
			return fmt.Errorf("compact %s: %w", b.engine.name, err)
		}
	}
	b.compactTo = b.last.Load()
	return nil
}

// bedWatch watches all keys as the apiserver's cache does, and records how old events are on
// arrival.
type bedWatch struct {
	close func()

	mu    sync.Mutex // guards the fields below
	moved sync.Cond
	ages  []time.Duration
	seen  int64
	err   error
}

func (b *bed) startWatch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	w := &bedWatch{}
	w.moved.L = &w.mu
	var group sync.WaitGroup
	w.close = func() { cancel(); group.Wait() }
	// The watch starts at a known revision, so it misses nothing between now and the server's
	// answer.
	events := b.client.Watch(ctx, resource, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(b.last.Load()+1))
	group.Go(func() {
		for resp := range events {
			w.note(resp, b.epoch)
		}
		w.fail(fmt.Errorf("watch of %s ended", b.engine.name))
	})
	b.watch = w
}

func (w *bedWatch) note(resp clientv3.WatchResponse, epoch time.Time) {
	now := time.Since(epoch)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := resp.Err(); err != nil {
		w.err = err
	}
	for _, e := range resp.Events {
		if e.Type == mvccpb.PUT {
			w.ages = append(w.ages, now-time.Duration(binary.BigEndian.Uint64(e.Kv.Value)))
		}
		w.seen = e.Kv.ModRevision
	}
	w.moved.Broadcast()
}

func (w *bedWatch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.moved.Broadcast()
}

// take waits for all events up to a revision, and returns the ages of the events since the last
// call.
func (w *bedWatch) take(revision int64) ([]time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.seen < revision && w.err == nil {
		w.moved.Wait()
	}
	ages := w.ages
	w.ages = nil
	return ages, w.err
}
