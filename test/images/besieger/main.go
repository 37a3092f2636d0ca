// Command besieger attacks a cluster from one of its pods, or uses it as a well-behaved client
// does.
//
//	besieger attack NAME -for 60s [-target ADDRESS] ...
//		runs one attack and prints its counts as JSON
//	besieger guest -api URL -dns ADDRESS -web URL
//		is a good client; :9000/measure prints its latencies as JSON
//	besieger hall
//		is the backend of the Ingress: :8080
//	besieger registry
//		is a hostile image registry: 127.0.0.1:5001
//
// An attack ends by itself when its time is over. It is written for test/siege, which runs it
// inside a private host; it must not be pointed at anything else.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// attack keeps up the pressure on options.target until ctx ends. It counts its actions in the
// tally.
type attack func(ctx context.Context, o options, t *tally) error

var errUsage = errors.New("usage: besieger attack NAME [-flags] | guest | hall | registry")

// options are the options of attacks; each attack uses those that it needs.
type options struct {
	target  string        // address and port, or URL
	host    string        // HTTP Host, or the pod to reach for attacks on the API
	path    string        // of an HTTP request
	count   int           // connections, workers or objects, as the attack needs
	streams int           // on each connection
	last    time.Duration // how long the attack takes
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "besieger:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	switch args[0] {
	case "attack":
		if len(args) < 2 {
			return errUsage
		}
		return runAttack(ctx, args[1], args[2:])
	case "guest":
		return runGuest(ctx, args[1:])
	case "hall":
		return runHall(ctx)
	case "registry":
		return runRegistry(ctx)
	}
	return errUsage
}

func attacks() map[string]attack {
	return map[string]attack{
		"idle":         idle,
		"slow-header":  slowHeader,
		"slow-body":    slowBody,
		"slow-reader":  slowReader,
		"huge-headers": hugeHeaders,
		"streams":      unfinishedStreams,
		"resets":       rapidResets,
		"smuggling":    smuggling,
		"dns-pipeline": dnsPipeline,
		"dns-flood":    dnsFlood,
		"watches":      watches,
		"writes":       writes,
		"exec":         unreadExecs,
		"logs":         unreadLogs,
		"forward":      unreadForwards,
		"fork-bomb":    forkBomb,
		"memory-hog":   memoryHog,
	}
}

func runAttack(ctx context.Context, name string, args []string) error {
	a, ok := attacks()[name]
	if !ok {
		return fmt.Errorf("no attack %q; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(attacks())), ", "))
	}
	var o options
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.StringVar(&o.target, "target", "", "address and port, or URL")
	set.StringVar(&o.host, "host", "", "HTTP Host, or the pod to reach")
	set.StringVar(&o.path, "path", "/", "path of HTTP requests")
	set.IntVar(&o.count, "count", 100, "connections or workers")
	set.IntVar(&o.streams, "streams", 128, "streams on each connection")
	set.DurationVar(&o.last, "for", 10*time.Second, "how long")
	if err := set.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.last)
	defer cancel()
	t := &tally{counts: map[string]int{}}
	// Refusals are counted. They are no failure of the attack.
	err := a(ctx, o, t)
	out := json.NewEncoder(os.Stdout)
	return errors.Join(err, out.Encode(map[string]any{"attack": name, "counts": t.snapshot()}))
}

// tally counts an attack's events by name. It is safe for concurrent use.
type tally struct {
	mu     sync.Mutex
	counts map[string]int // guarded by mu
}

func (t *tally) add(name string) { t.addN(name, 1) }

func (t *tally) addN(name string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[name] += n
}

// fail counts err under a short name.
func (t *tally) fail(err error) {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		t.add("error: " + errno.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		t.add("error: timeout")
	default:
		text := err.Error()
		t.add("error: " + text[max(0, len(text)-60):])
	}
}

func (t *tally) snapshot() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.counts)
}

// workers runs n copies of f until each has returned.
func workers(n int, f func(worker int)) {
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { f(i) })
	}
	group.Wait()
}

// rest waits for d and returns true, or returns false if ctx ends first.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
