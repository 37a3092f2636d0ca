package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"
)

// storeOptions are the options of `scripts/bench datastore`.
type storeOptions struct {
	server, stock, dir, out, commit string
	rounds                          int
	budget                          time.Duration
	quick, million, write           bool
	only                            string
}

func runStoreBench(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	o, err := parseStoreOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, err
	}
	// The clients share the processor with the servers: the less the clients need, the more of a
	// figure belongs to the server.
	debug.SetGCPercent(clientGC)
	return exitCode(o.bench(ctx, stdout, stderr))
}

// millionBudget is for three engines with a million keys.
const millionBudget = time.Hour

// clientGC lets the clients' heap grow to five times the memory in use.
const clientGC = 400

func parseStoreOptions(args []string, stderr io.Writer) (storeOptions, error) {
	var o storeOptions
	f := flag.NewFlagSet("scripts/bench datastore", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.server, "server", "bin/stock/datastore", "the `program` that serves mote's datastore")
	f.StringVar(&o.stock, "stock", "bin/stock", "`folder` of etcd and kine")
	f.StringVar(&o.dir, "dir", "/var/tmp", "`folder` on the disk to measure on; not a tmpfs")
	f.StringVar(&o.out, "out", "docs/benchmarks.md", "the `file` whose section --write replaces")
	f.StringVar(&o.commit, "commit", "", "the `commit` that is measured, for the report")
	f.StringVar(&o.only, "engine", "", "measure this `engine` alone: mote, etcd or kine")
	f.IntVar(&o.rounds, "rounds", 7, "how often each kind of request is measured on each engine")
	f.DurationVar(&o.budget, "budget", 8*time.Minute, "leave out what would take longer than this")
	f.BoolVar(&o.quick, "quick", false, "under two minutes: 3 rounds, nothing about growth")
	f.BoolVar(&o.million, "million", false, "grow to a million keys too; takes half an hour and 15 GB")
	f.BoolVar(&o.write, "write", false, "write --out; a run without --quick and --engine does so anyway")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	if o.million {
		o.budget = max(o.budget, millionBudget)
	}
	if o.quick {
		o.rounds = min(o.rounds, 3)
	}
	o.write = o.write || !o.quick && o.only == ""
	for _, path := range []*string{&o.server, &o.stock, &o.dir} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return o, err
		}
		if _, err := os.Stat(absolute); err != nil {
			return o, err
		}
		*path = absolute
	}
	return o, nil
}

// storeBench is one run: each engine in a process of its own, on one disk, all at the same time.
// While one is measured the others have nothing to do.
type storeBench struct {
	storeOptions
	work     string
	progress io.Writer
	began    time.Time
	engines  []engine
	requests []*requestResult
	growth   []growthResult
	beyond   []string // the points at which another engine failed, with the error
	rest     []restResult
}

func (o storeOptions) bench(ctx context.Context, stdout, stderr io.Writer) (err error) {
	work, err := os.MkdirTemp(o.dir, "mote-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	b := &storeBench{storeOptions: o, work: work, progress: stderr, engines: o.engines()}
	if o.only != "" {
		b.engines = slices.DeleteFunc(b.engines, func(e engine) bool { return e.name != o.only })
	}
	if len(b.engines) == 0 {
		return fmt.Errorf("unknown engine %q; there are mote, etcd and kine", o.only)
	}
	b.began = time.Now()
	if err := b.compareRequests(ctx); err != nil {
		return err
	}
	if !o.quick {
		if err := b.grow(ctx); err != nil {
			return err
		}
	}
	return b.report(stdout, time.Since(b.began))
}

func (b *storeBench) say(format string, args ...any) {
	fmt.Fprintf(b.progress, time.Now().UTC().Format("15:04:05")+" "+format+"\n", args...)
}

// requestKeys and valueSize describe the store in which requests are compared: that of a busy small
// cluster.
const (
	requestKeys = 10_000
	valueSize   = 2000
)

// compareRequests measures each kind of request on one engine after the other, again and again:
// other activity on the machine then affects all of them alike.
func (b *storeBench) compareRequests(ctx context.Context) (err error) {
	var beds []*bed
	defer func() {
		for _, one := range beds {
			err = errors.Join(err, one.close())
		}
	}()
	for _, e := range b.engines {
		one, err := b.openBed(ctx, e, "requests", valueSize)
		if err != nil {
			return err
		}
		beds = append(beds, one)
		if err := one.fill(ctx, requestKeys); err != nil {
			return err
		}
		b.say("%s has %d keys", e.name, requestKeys)
	}
	for _, r := range requests() {
		b.requests = append(b.requests, &requestResult{request: r, trials: map[string][]trialOfRequests{}})
	}
	for round := range b.rounds {
		for _, result := range b.requests {
			for i := range beds {
				one := beds[(i+round)%len(beds)] // alternate, so that the order gives no engine an advantage
				trial, err := one.measure(ctx, result.request)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", one.engine.name, result.request.what, err)
				}
				result.trials[one.engine.name] = append(result.trials[one.engine.name], trial)
			}
		}
		for _, one := range beds {
			if err := one.compact(ctx); err != nil {
				return err
			}
		}
		b.say("round %d of %d", round+1, b.rounds)
	}
	return b.watchRest(ctx, beds)
}
