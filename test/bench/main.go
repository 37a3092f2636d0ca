package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	code, err := run(os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(code)
}

// run is the whole program. The arguments init and trial select the two inner processes of a trial.
func run(args []string, stdout, stderr io.Writer) (int, error) {
	if len(args) == 2 && args[0] == "init" {
		return runAsInit(args[1])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) == 2 && args[0] == "trial" {
		return exitCode(runTrial(ctx, args[1]))
	}
	if len(args) > 0 && args[0] == "datastore" {
		return runStoreBench(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "addons" {
		return runAddonBench(ctx, args[1:], stdout, stderr)
	}
	o, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, err
	}
	return exitCode(o.bench(ctx, stdout, stderr))
}

func exitCode(err error) (int, error) {
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// rows are the rows that can be measured, in the order of the report.
var rows = [...]string{"start", "pods", "memory", "idle", "size", "run"}

type options struct {
	mote, stock, dir, out string
	trials, pods          int
	idle, settle          time.Duration
	quick, write, keep    bool
	moteArgs              []string
	rows                  []string
	commit                string
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("scripts/bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, "usage: scripts/bench [flags] [%s]...\n", strings.Join(rows[:], "|"))
		f.PrintDefaults()
	}
	f.StringVar(&o.mote, "mote", "bin/mote", "the mote `file` to measure")
	f.StringVar(&o.stock, "stock", "bin/stock", "`folder` of the stock programs; empty measures mote alone")
	f.StringVar(&o.dir, "dir", "/var/tmp", "`folder` on the disk to measure on; not a tmpfs")
	f.StringVar(&o.out, "out", "docs/benchmarks.md", "the `file` that --write writes")
	f.StringVar(&o.commit, "commit", "", "the `commit` that is measured, for the report")
	f.IntVar(&o.trials, "trials", 5, "cold starts of each")
	f.IntVar(&o.pods, "pods", 8, "pods timed in each trial")
	minutes := f.Float64("idle-minutes", 5, "how long usage at idle is summed")
	f.BoolVar(&o.quick, "quick", false, "a few minutes: 2 trials, 30 s of idle, the packed file is not made")
	f.BoolVar(&o.write, "write", false, "write --out; a run of all rows without --quick does so anyway")
	f.BoolVar(&o.keep, "keep", false, "leave the trials' folders, with all logs, in --dir")
	f.Func("mote-arg", "a further `argument` of mote server, to measure a setting; may be repeated", func(arg string) error {
		o.moteArgs = append(o.moteArgs, arg)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.idle, o.settle = time.Duration(*minutes*float64(time.Minute)), time.Minute
	if o.quick {
		o.trials, o.pods, o.idle, o.settle = 2, 5, 30*time.Second, 20*time.Second
	}
	o.rows = f.Args()
	if len(o.rows) == 0 {
		o.rows = rows[:]
		o.write = o.write || !o.quick
	}
	for _, row := range o.rows {
		if !slices.Contains(rows[:], row) {
			return o, fmt.Errorf("unknown row %q; there are %s", row, strings.Join(rows[:], ", "))
		}
	}
	return o, o.resolve()
}

// resolve makes the paths absolute and checks that the trials can use them.
func (o *options) resolve() error {
	for _, path := range []*string{&o.mote, &o.stock, &o.dir} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(absolute); err != nil {
			return err
		}
		for _, hidden := range []string{"/var/lib/", "/var/log/", "/run/"} {
			if strings.HasPrefix(absolute+"/", hidden) {
				return fmt.Errorf("cannot use %s: a trial covers %s with a folder of its own; use another place", absolute, hidden)
			}
		}
		*path = absolute
	}
	if os.Geteuid() != 0 {
		return errors.New("cannot make namespaces: not root; run it with sudo")
	}
	return nil
}

func (o options) wants(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(o.rows, name) })
}

// flavours returns the clusters to compare, mote first.
func (o options) flavours() []string {
	if o.stock == "" {
		return []string{"mote"}
	}
	return []string{"mote", "stock"}
}
