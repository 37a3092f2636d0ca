// Package logging combines all logs of the process into one: mote's own log/slog records, and those
// of klog (Kubernetes), logrus (containerd, kine), zap (the etcd client), gRPC, and package log
// (CoreDNS, Go's HTTP servers). Every record has a component key.
//
// Three rules keep the log readable:
//
//   - Upstream components log their routine at "info". Those records become debug records here;
//     their
//     warnings and errors keep their level.
//   - Expected lists the warnings and errors that a healthy cluster logs too, with the reason.
//     They become debug records, most of them only in one phase of the process.
//   - Warnings and errors that repeat are counted: see limiter.
//
// main calls Setup once, before anything starts; the loggers are safe for concurrent use. A server
// also keeps its newest records in a History, which Read reads. docs/reference/log.md is generated
// from the tables of this package.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Levels and Formats return the values that Setup accepts, for help texts and completion.
func Levels() []string  { return []string{"debug", "info", "warn", "error"} }
func Formats() []string { return []string{"text", "json"} }

// startGrace is the time after Started in which the lines of a start are still expected: kube-proxy
// and the garbage collector make their first rounds a few seconds after they are ready, on a slow
// machine many seconds.
const startGrace = time.Minute

// Log is the log of the process.
type Log struct {
	phase   atomic.Uint32 // a Phase; Starting until Started
	limiter *limiter
}

// Started records that every component is ready: startGrace later the lines of a start are no
// longer expected.
func (l *Log) Started() {
	time.AfterFunc(startGrace, func() { l.phase.CompareAndSwap(uint32(Starting), uint32(Running)) })
}

// Stopping records that the components are being stopped from now on.
func (l *Log) Stopping() { l.phase.Store(uint32(Stopping)) }

// Flush writes the counts of repeated lines whose minute has not ended yet.
func (l *Log) Flush() { l.limiter.flush() }

// Setup writes records from the minimum log level on to w in format ("text" or "json") and to
// history, if that is not nil. It makes this slog's default and routes every upstream logger to it.
func Setup(w io.Writer, history *History, level, format string) (*Log, error) {
	var min slog.Level
	if err := min.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q is unknown; use one of %s", level, strings.Join(Levels(), ", "))
	}
	opts := &slog.HandlerOptions{Level: min}
	var handler slog.Handler
	switch format {
	case "text":
		handler = slog.NewTextHandler(w, opts)
	case "json":
		handler = slog.NewJSONHandler(w, opts)
	default:
		return nil, fmt.Errorf("log format %q is unknown; use one of %s", format, strings.Join(Formats(), ", "))
	}
	if history != nil {
		handler = slog.NewMultiHandler(handler, slog.NewJSONHandler(history, &slog.HandlerOptions{Level: min, ReplaceAttr: readable}))
	}
	l := &Log{limiter: newLimiter()}
	l.phase.Store(uint32(Starting))
	handler = desk{next: handler, log: l, expected: expectedByComponent()}
	slog.SetDefault(slog.New(handler))
	routeLog(handler)
	routeKlog(handler)
	routeLogrus(handler)
	routeGRPC(handler)
	return l, nil
}

// readable formats durations in JSON as in text, and not as numbers of nanoseconds.
func readable(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.String())
	}
	return a
}

// Components returns the names of the upstream components that records may carry.
func Components() []string {
	names := []string{"containerd", "datastore", "dns", "grpc", "kubernetes"}
	for _, c := range upstreamCode() {
		names = append(names, c.component)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// desk is the handler of every record: it lowers those in Expected and counts repeated ones.
type desk struct {
	next      slog.Handler
	log       *Log
	expected  map[string][]Expectation // by component
	component string                   // from WithAttrs, or ""
	err       string                   // from WithAttrs, or ""
	grouped   bool                     // later attributes are in a group
}

// Enabled implements slog.Handler.
func (d desk) Enabled(ctx context.Context, level slog.Level) bool { return d.next.Enabled(ctx, level) }

// Handle implements slog.Handler.
func (d desk) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn { // lower levels have no expected errors and no flood, unless a user asks for more
		return d.next.Handle(ctx, r)
	}
	component, err := d.component, d.err
	if !d.grouped {
		r.Attrs(func(a slog.Attr) bool {
			component, err = note(a, component, err)
			return true
		})
	}
	phase := Phase(d.log.phase.Load())
	for _, e := range d.expected[component] {
		if e.During&phase == 0 || !e.matches(r, err) {
			continue
		}
		if !d.next.Enabled(ctx, slog.LevelDebug) {
			return nil
		}
		r.Level = slog.LevelDebug
		return d.next.Handle(ctx, r)
	}
	return d.log.limiter.handle(ctx, d.next, kind{r.Level, component, class(r.Message), class(err)}, r)
}

// note returns component and err as updated by a. The first component and the last error count.
func note(a slog.Attr, component, err string) (string, string) {
	switch a.Key {
	case "component":
		if component == "" {
			component = a.Value.String()
		}
	case "err", "error":
		err = a.Value.String()
	}
	return component, err
}

// WithAttrs implements slog.Handler.
func (d desk) WithAttrs(attrs []slog.Attr) slog.Handler {
	if !d.grouped {
		for _, a := range attrs {
			d.component, d.err = note(a, d.component, d.err)
		}
	}
	d.next = d.next.WithAttrs(attrs)
	return d
}

// WithGroup implements slog.Handler.
func (d desk) WithGroup(name string) slog.Handler {
	d.grouped = d.grouped || name != ""
	d.next = d.next.WithGroup(name)
	return d
}
