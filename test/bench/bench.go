package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// measured has all results of a run of the bench, by flavour.
type measured struct {
	starts map[string][]result
	idle   map[string]result
	runs   []time.Duration
	sizes  sizes
}

// bench measures the rows that o selects and reports them.
func (o options) bench(ctx context.Context, stdout, stderr io.Writer) (err error) {
	work, err := os.MkdirTemp(o.dir, "mote-bench-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(stderr, "keeping", work)
	} else {
		defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	}
	b := &bench{options: o, work: work, progress: stderr}
	m := measured{starts: map[string][]result{}, idle: map[string]result{}}
	began := time.Now()
	if o.wants("start", "pods", "memory", "idle") {
		if err := b.warmUp(ctx); err != nil {
			return err
		}
	}
	if o.wants("start", "pods") {
		if err := b.timeStarts(ctx, m.starts); err != nil {
			return err
		}
	}
	if o.wants("memory", "idle") {
		if err := b.watchIdle(ctx, m.idle); err != nil {
			return err
		}
	}
	if o.wants("run") {
		if m.runs, err = b.timeRuns(ctx); err != nil {
			return err
		}
	}
	if o.wants("size") {
		b.say("sizes")
		if m.sizes, err = o.readSizes(b.payload()); err != nil {
			return err
		}
	}
	return o.report(stdout, m, time.Since(began))
}

// bench is the state of one run.
type bench struct {
	options
	work     string
	progress io.Writer
	trials   int
}

func (b *bench) payload() string { return filepath.Join(b.work, "payload") }
func (b *bench) images() string  { return filepath.Join(b.work, "images.tar") }

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, time.Now().UTC().Format("15:04:05")+" "+format+"\n", args...)
}

// trial creates the directory of a new trial.
func (b *bench) trial(flavour string) (trial, error) {
	b.trials++
	t := trial{
		Flavour: flavour, Dir: filepath.Join(b.work, fmt.Sprintf("%d-%s-%d", os.Getpid(), flavour, b.trials)),
		Mote: b.mote, MoteArgs: b.moteArgs, Stock: b.stock, Payload: b.payload(),
	}
	if _, err := os.Stat(b.images()); err == nil {
		t.Images = b.images()
	}
	return t, os.MkdirAll(t.path("disk"), 0o755)
}

// isolate runs a trial and removes its directory.
func (b *bench) isolate(ctx context.Context, t trial) (result, error) {
	r, err := isolate(ctx, t)
	if b.keep {
		return r, err
	}
	return r, errors.Join(err, os.RemoveAll(t.Dir))
}

// warmUp runs each cluster once untimed, which brings its programs into the page cache. From mote's
// data directory it takes the per-pod programs that the stock components share and that the pods'
// image contains.
func (b *bench) warmUp(ctx context.Context) error {
	for _, flavour := range b.flavours() {
		b.say("warm up %s", flavour)
		t, err := b.trial(flavour)
		if err != nil {
			return err
		}
		t.FirstPod = flavour != "mote" // mote's first trial runs before the image exists
		if _, err := isolate(ctx, t); err != nil {
			return err
		}
		if flavour == "mote" {
			if err := b.takePayload(t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b *bench) takePayload(t trial) error {
	found, err := filepath.Glob(filepath.Join(t.path("disk"), "lib/mote/payload/*/runc"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("find the unpacked payload of mote: %d folders have a runc: %w", len(found), err)
	}
	if err := os.CopyFS(b.payload(), os.DirFS(filepath.Dir(found[0]))); err != nil {
		return err
	}
	return writeImages(b.images(), filepath.Join(b.payload(), "pause"))
}

func (b *bench) timeStarts(ctx context.Context, into map[string][]result) error {
	for i := range b.options.trials {
		for _, flavour := range b.flavours() {
			t, err := b.trial(flavour)
			if err != nil {
				return err
			}
			t.FirstPod, t.Warm = true, b.wants("start")
			if b.wants("pods") {
				t.Pods = b.pods
			}
			r, err := b.isolate(ctx, t)
			if err != nil {
				return err
			}
			b.say("start %d %-5s  API %4d ms, node %4d ms, first pod %4d ms, CPU %4d ms; stop %4d ms; warm: API %4d ms, node %4d ms; pods p50 %.0f ms",
				i+1, flavour, r.APIReady.Milliseconds(), r.NodeReady.Milliseconds(), r.FirstPod.Milliseconds(), r.StartCPU.Milliseconds(), r.Stop.Milliseconds(),
				r.WarmAPI.Milliseconds(), r.WarmNode.Milliseconds(), milliseconds(r.Pods...).median())
			into[flavour] = append(into[flavour], r)
		}
	}
	return nil
}

// watchIdle runs both clusters at the same time: idle clusters hardly disturb each other, and other
// activity on the machine affects both alike.
func (b *bench) watchIdle(ctx context.Context, into map[string]result) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		group sync.WaitGroup
		mu    sync.Mutex // guards into and problems
		errs  []error
	)
	b.say("idle: settle %s, watch %s", b.settle, b.idle)
	for _, flavour := range b.flavours() {
		t, err := b.trial(flavour)
		if err != nil {
			return err
		}
		t.OwnDisk, t.Settle, t.Idle = true, b.settle, b.idle
		if b.wants("memory") {
			t.IdlePods = idlePods
		}
		group.Go(func() {
			r, err := b.isolate(ctx, t)
			mu.Lock()
			defer mu.Unlock()
			into[flavour] = r
			if err != nil {
				errs = append(errs, err)
				cancel()
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// idlePods is the number of pods in the second reading of memory, as in the budget.
const idlePods = 5

// timeRuns measures the time of a whole throwaway cluster, from the command to its end.
func (b *bench) timeRuns(ctx context.Context) ([]time.Duration, error) {
	var times []time.Duration
	for i := range b.options.trials + 1 {
		began := time.Now()
		out, err := exec.CommandContext(ctx, b.mote, "run", "-q", "--", "kubectl", "get", "nodes").CombinedOutput()
		took := time.Since(began)
		if err != nil {
			return nil, fmt.Errorf("mote run: %w: %s", err, out)
		}
		b.say("run %d  %d ms", i, took.Milliseconds())
		if i > 0 { // the first run brings the file into the page cache
			times = append(times, took)
		}
	}
	return times, nil
}
