package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// addonPart is the measurement of one addon or of all of them. Each has a file of its own.
type addonPart struct {
	name string
	// inside measures in a trial's namespaces, where a mote is ready. outside runs on the host.
	// Exactly one of the two is set.
	inside  func(context.Context, *addonRoom) error
	outside func(context.Context, *addonBench) (map[string]sample, error)
	figures []addonFigure
}

// addonFigure is a row of the report: a sample of mote, and one of the program to which it is
// compared.
type addonFigure struct {
	what, format string
	mote, other  string // names of samples; other may be empty
	percentile   int
	// budget is the most that mote may need, or with atLeast the least that it must reach; 0 means
	// no budget.
	budget  float64
	atLeast bool
	// relative means that budget applies to mote / other.
	relative bool
	// difference compares by mote - other, not by mote / other.
	difference bool
}

// addonParts returns all parts, in the order of the report.
func addonParts() []addonPart {
	return []addonPart{costPart(), dnsPart(), claimPart(), policyPart(), policyRulesPart(), ingressPart()}
}

// addonRoom is the environment of a part: the namespaces of a ready mote.
type addonRoom struct {
	trial
	kubeconfig string
	client     *client
	programs   *programs
	seen       map[string]sample
}

func (a *addonRoom) add(figure string, values ...float64) {
	a.seen[figure] = append(a.seen[figure], values...)
}

// measureAddon runs the part that t names.
func (t trial) measureAddon(ctx context.Context, c cluster, p *programs, r *result) error {
	for _, part := range addonParts() {
		if part.name != t.Addon {
			continue
		}
		client, err := waitAPI(ctx, c.kubeconfig())
		if err != nil {
			return err
		}
		defer client.close()
		room := &addonRoom{trial: t, kubeconfig: c.kubeconfig(), client: client, programs: p, seen: map[string]sample{}}
		err = part.inside(ctx, room)
		r.Addon = room.seen
		return err
	}
	return fmt.Errorf("there is no such part")
}

// addonOptions are the options of `scripts/bench addons`.
type addonOptions struct {
	options
	rounds int
	parts  []string
}

func runAddonBench(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	o, err := parseAddonOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, err
	}
	return exitCode(o.bench(ctx, stdout, stderr))
}

func parseAddonOptions(args []string, stderr io.Writer) (addonOptions, error) {
	var names []string
	for _, part := range addonParts() {
		names = append(names, part.name)
	}
	var o addonOptions
	f := flag.NewFlagSet("scripts/bench addons", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, "usage: scripts/bench addons [flags] [%s]...\n", strings.Join(names, "|"))
		f.PrintDefaults()
	}
	f.StringVar(&o.mote, "mote", "bin/mote", "the mote `file` to measure")
	f.StringVar(&o.options.stock, "stock", "bin/stock", "`folder` of CoreDNS as a program of its own and of the policies' benchmark")
	f.StringVar(&o.dir, "dir", "/var/tmp", "`folder` on the disk to measure on; not a tmpfs")
	f.StringVar(&o.out, "out", "docs/benchmarks.md", "the `file` whose section --write replaces")
	f.StringVar(&o.commit, "commit", "", "the `commit` that is measured, for the report")
	f.IntVar(&o.rounds, "rounds", 10, "how often each figure is taken")
	minutes := f.Float64("idle-minutes", 5, "how long usage at idle is summed")
	f.BoolVar(&o.quick, "quick", false, "a few minutes: 3 rounds, a minute of idle")
	f.BoolVar(&o.write, "write", false, "write --out; a run of all parts without --quick does so anyway")
	f.BoolVar(&o.keep, "keep", false, "leave the trials' folders, with all logs, in --dir")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.idle, o.settle = time.Duration(*minutes*float64(time.Minute)), time.Minute
	if o.quick {
		o.rounds, o.idle, o.settle = min(o.rounds, 3), time.Minute, 30*time.Second
	}
	if o.parts = f.Args(); len(o.parts) == 0 {
		o.parts = names
		o.write = o.write || !o.quick
	}
	for _, part := range o.parts {
		if !slices.Contains(names, part) {
			return o, fmt.Errorf("unknown part %q; there are %s", part, strings.Join(names, ", "))
		}
	}
	return o, o.resolve()
}

// addonBench is one run.
type addonBench struct {
	bench
	addonOptions
	seen map[string]sample
}

func (o addonOptions) bench(ctx context.Context, stdout, stderr io.Writer) (err error) {
	work, err := os.MkdirTemp(o.dir, "mote-bench-")
	if err != nil {
		return err
	}
	if !o.keep {
		defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	}
	began := time.Now()
	plain := o.options
	plain.stock = "" // the only cluster is mote
	b := &addonBench{bench: bench{options: plain, work: work, progress: stderr}, addonOptions: o, seen: map[string]sample{}}
	if err := b.warmUp(ctx); err != nil {
		return err
	}
	for _, part := range addonParts() {
		if !slices.Contains(o.parts, part.name) {
			continue
		}
		b.say("%s", part.name)
		seen, err := b.measure(ctx, part)
		if err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		maps.Copy(b.seen, seen)
	}
	return b.report(stdout, time.Since(began))
}

func (b *addonBench) measure(ctx context.Context, part addonPart) (map[string]sample, error) {
	if part.outside != nil {
		return part.outside(ctx, b)
	}
	t, err := b.trial("mote")
	if err != nil {
		return nil, err
	}
	t.Addon, t.Rounds, t.Stock = part.name, b.rounds, b.addonOptions.options.stock
	t.OwnDisk = true // on a full disk the kubelet evicts the pods
	r, err := b.isolate(ctx, t)
	return r.Addon, err
}

// program returns the path of a file in the directory of the stock programs.
func (b *addonBench) program(name string) string {
	return filepath.Join(b.addonOptions.options.stock, name)
}
