package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// growthResult is the cost of one engine with a number of keys of one size.
type growthResult struct {
	keys, size int
	engine     string
	// The time of a request: creates are by loaders, updates by many clients at once, all others by
	// one.
	create, update, get, list, count time.Duration
	// written is the number of bytes that the disk got for each key; disk is the number of bytes
	// that the files occupy at the end.
	written, disk float64
	// full and read are the additional memory of the server compared to the empty store: after the
	// writes, and after a restart and a list of everything.
	full, read memoryGrowth
	startup    time.Duration
}

// memoryGrowth is in bytes. The part that is not anonymous is mapped files: page cache, which the
// kernel can reclaim.
type memoryGrowth struct{ pss, anonymous int64 }

func (m memoryGrowth) String() string {
	return fmt.Sprintf("%.1f (%.1f)", float64(m.pss)/mb, float64(m.anonymous)/mb)
}

// points returns the sizes of stores at which growth is shown.
func (o storeOptions) points() [][2]int {
	points := [][2]int{{1000, valueSize}, {10_000, valueSize}, {10_000, 500}, {2000, 20_000}, {200, 500_000}, {100_000, valueSize}}
	if o.million {
		points = append(points, [2]int{1_000_000, valueSize})
	}
	return points
}

func (b *storeBench) grow(ctx context.Context) error {
	for _, point := range b.points() {
		for _, e := range b.engines {
			if expected := b.expected(e, point[0]); time.Since(b.began)+expected > b.budget {
				b.say("left out: %s with %d keys of %d bytes would take some %s more", e.name, point[0], point[1], expected)
				continue
			}
			result, err := b.growOne(ctx, e, point[0], point[1])
			if err != nil {
				err = fmt.Errorf("%s with %d keys of %d bytes: %w", e.name, point[0], point[1], err)
				if e.name == "mote" || ctx.Err() != nil {
					return err
				}
				b.beyond = append(b.beyond, err.Error()) // another engine's limit is a result
				b.say("%v", err)
				continue
			}
			b.growth = append(b.growth, result)
			b.say("%s with %d keys of %d bytes: create %s, start %s", e.name, point[0], point[1], result.create, result.startup)
		}
	}
	return nil
}

// expected returns roughly how long a point takes: twice the time of its writes at the rate of the
// last measured store.
func (b *storeBench) expected(e engine, keys int) time.Duration {
	for _, r := range slices.Backward(b.growth) {
		if r.engine == e.name && r.size == valueSize {
			return 2 * time.Duration(keys) * r.create
		}
	}
	return 0
}

// calm is the time that a server is left idle before its memory is read.
const calm = 2 * time.Second

func (b *storeBench) growOne(ctx context.Context, e engine, keys, size int) (r growthResult, err error) {
	r = growthResult{keys: keys, size: size, engine: e.name}
	one, err := b.openBed(ctx, e, fmt.Sprintf("%d-%d", keys, size), size)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, one.close()) }()
	empty, err := one.rest(ctx)
	if err != nil {
		return r, err
	}
	if err := r.load(ctx, one); err != nil {
		return r, err
	}
	full, err := one.rest(ctx)
	if err != nil {
		return r, err
	}
	r.full = memoryGrowth{full.PSS - empty.PSS, full.Anon - empty.Anon}
	if err := r.ask(ctx, one); err != nil {
		return r, err
	}
	if err := r.restart(ctx, one); err != nil {
		return r, err
	}
	again, err := one.rest(ctx)
	r.read = memoryGrowth{again.PSS - empty.PSS, again.Anon - empty.Anon}
	return r, err
}

func (r *growthResult) load(ctx context.Context, b *bed) error {
	before, err := b.look()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := b.fill(ctx, r.keys); err != nil {
		return err
	}
	r.create = time.Since(began) / time.Duration(r.keys)
	after, err := b.look()
	r.written = float64(after.Written-before.Written) / float64(r.keys)
	return err
}

// ask measures requests to the full store.
func (r *growthResult) ask(ctx context.Context, b *bed) error {
	changed := min(r.keys, freshKeys)
	for _, one := range []struct {
		request
		into *time.Duration
	}{
		{request{clients: many, count: changed, do: create}, new(time.Duration)},
		{request{clients: many, count: changed, do: update}, &r.update},
		{request{clients: 1, count: 300, do: get}, &r.get},
		{request{clients: 1, count: 10, do: list}, &r.list},
		{request{clients: 1, count: 10, do: count}, &r.count},
	} {
		trial, err := b.measure(ctx, one.request)
		if err != nil {
			return err
		}
		*one.into = trial.each
	}
	return nil
}

// restarts is the number of timed starts.
const restarts = 3

func (r *growthResult) restart(ctx context.Context, b *bed) error {
	var times sample
	for range restarts {
		if err := b.stop(); err != nil {
			return err
		}
		disk, err := occupied(b.dir)
		if err != nil {
			return err
		}
		r.disk = float64(disk)
		server, err := b.engine.start(ctx, b.dir)
		if err != nil {
			return err
		}
		b.storeServer = server
		times = append(times, milliseconds(server.startup)...)
	}
	r.startup = time.Duration(times.median() * float64(time.Millisecond))
	return b.readAll(ctx)
}

// rest leaves the server idle for a moment and then reads its resource usage.
func (b *bed) rest(ctx context.Context) (process, error) {
	if err := pause(ctx, calm); err != nil {
		return process{}, err
	}
	return b.look()
}

// At its start the apiserver's cache requests pages of this many keys. Here a page also has a limit
// in bytes.
const (
	cachePage  = 10_000
	cacheBytes = 20 << 20
)

// readAll lists all keys, as the apiserver's cache does when it starts.
func (b *bed) readAll(ctx context.Context) error {
	end := clientv3.WithRange(clientv3.GetPrefixRangeEnd(resource))
	for from, more := resource, true; more; {
		resp, err := b.client.Get(ctx, from, end, clientv3.WithLimit(min(cachePage, cacheBytes/int64(len(b.value)))))
		if err != nil {
			return err
		}
		more = resp.More
		if more {
			from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		}
	}
	return nil
}

// occupied returns how many bytes of the disk the files below a directory take.
func occupied(folder string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := os.Stat(path)
		if err == nil {
			sum += info.Sys().(*syscall.Stat_t).Blocks * 512 // stat(2)
		}
		return err
	})
	return sum, err
}
