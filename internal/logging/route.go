package logging

import (
	"context"
	"io"
	"log"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"
)

// routeLog must be called after slog.SetDefault, which routes package log too, all of it at one
// level.
func routeLog(handler slog.Handler) {
	log.SetFlags(0)
	log.SetOutput(stdlog{handler})
}

func routeKlog(handler slog.Handler) {
	klog.SetSlogLogger(slog.New(upstream{handler}))
}

func routeLogrus(handler slog.Handler) {
	logrus.SetOutput(io.Discard)
	logrus.SetFormatter(nothing{})
	logrus.SetLevel(logrus.WarnLevel)
	if handler.Enabled(context.Background(), slog.LevelDebug) {
		logrus.SetLevel(logrus.InfoLevel)
	}
	logrus.SetReportCaller(true) // two components share logrus
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(hook{handler})
}

// upstream is klog's handler: info becomes debug, and the caller determines the component.
type upstream struct{ slog.Handler }

func demoted(level slog.Level) slog.Level {
	if level < slog.LevelWarn {
		return min(level, slog.LevelDebug)
	}
	return level
}

// Enabled implements slog.Handler.
func (u upstream) Enabled(ctx context.Context, level slog.Level) bool {
	return u.Handler.Enabled(ctx, demoted(level))
}

// Handle implements slog.Handler.
func (u upstream) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, demoted(r.Level), strings.TrimSpace(r.Message), r.PC)
	out.AddAttrs(slog.String("component", componentOf(r.PC)))
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "logger" { // the names of contextual loggers repeat the component
			out.AddAttrs(a)
		}
		return true
	})
	return u.Handler.Handle(ctx, out)
}

// WithAttrs implements slog.Handler.
func (u upstream) WithAttrs(attrs []slog.Attr) slog.Handler {
	return upstream{u.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (u upstream) WithGroup(name string) slog.Handler { return upstream{u.Handler.WithGroup(name)} }

// componentOf returns the component whose code contains the program counter. Code that several
// components share (client-go, component-base) is "kubernetes".
func componentOf(pc uintptr) string {
	frame, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	for _, c := range upstreamCode() {
		if strings.HasPrefix(frame.Function, c.prefix) {
			return c.component
		}
	}
	return "kubernetes"
}

// code assigns the functions whose names begin with prefix to a component.
type code struct{ prefix, component string }

// upstreamCode returns the prefixes in the order in which they are tried.
func upstreamCode() []code {
	return []code{
		{"k8s.io/kubernetes/pkg/kubelet", "kubelet"},
		{"k8s.io/kubernetes/pkg/volume", "kubelet"},
		{"k8s.io/kubernetes/cmd/kubelet", "kubelet"},
		{"k8s.io/kubernetes/pkg/proxy", "kube-proxy"},
		{"k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"},
		{"k8s.io/kubernetes/pkg/scheduler", "kube-scheduler"},
		{"k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"},
		{"k8s.io/kubernetes/pkg/controller/", "kube-controller-manager"},
		{"k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"},
		{"k8s.io/apiserver/", "kube-apiserver"},
		{"k8s.io/kube-aggregator/", "kube-apiserver"},
		{"k8s.io/apiextensions-apiserver/", "kube-apiserver"},
		{"k8s.io/kubernetes/pkg/", "kube-apiserver"},
		{"k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"},
	}
}

// hook sends logrus' entries to slog.
type hook struct{ handler slog.Handler }

// Levels implements logrus.Hook.
func (hook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire implements logrus.Hook.
func (h hook) Fire(e *logrus.Entry) error {
	level := slog.LevelDebug
	switch e.Level {
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.ErrorLevel, logrus.FatalLevel, logrus.PanicLevel:
		level = slog.LevelError
	}
	ctx := context.Background()
	if !h.handler.Enabled(ctx, level) {
		return nil
	}
	component := "containerd"
	if e.Caller != nil && strings.HasPrefix(e.Caller.Function, "github.com/k3s-io/kine/") {
		if repeatsRequest(e.Message) {
			return nil
		}
		component = "datastore"
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	r.AddAttrs(slog.String("component", component))
	for k, v := range e.Data {
		r.AddAttrs(slog.Any(k, v))
	}
	return h.handler.Handle(ctx, r)
}

// repeatsRequest reports whether a line of kine contains a whole request, with the object in it.
// The client gets the error and reports it.
func repeatsRequest(message string) bool {
	return strings.HasPrefix(message, "error in txn ") || strings.HasPrefix(message, "error in put ")
}

// nothing is a formatter without output: the hook has written the entry already.
type nothing struct{}

// Format implements logrus.Formatter.
func (nothing) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// stdlog sends the output of package log to slog. CoreDNS begins its lines with a level. Go's HTTP
// servers write no level: the mistake of a client (a TLS handshake that failed) is routine, a panic
// in a handler is an error, and a listener that accepts nothing, because descriptors are short, is
// a warning.
type stdlog struct{ handler slog.Handler }

// Write implements io.Writer. Each call writes one line.
func (l stdlog) Write(p []byte) (int, error) {
	level, component, text := slog.LevelDebug, "go", strings.TrimSpace(string(p))
	prefix, rest, ok := strings.Cut(text, "] ")
	switch {
	case ok && strings.HasPrefix(prefix, "["):
		component, text = "dns", rest
		switch prefix {
		case "[WARNING", "[ERROR":
			level = slog.LevelWarn
		case "[FATAL": // CoreDNS ends the process after this line
			level = slog.LevelError
		}
	case strings.HasPrefix(text, "http: Accept error: "):
		level = slog.LevelWarn
	case strings.HasPrefix(text, "http: panic serving "), strings.HasPrefix(text, "http2: panic serving "):
		level = slog.LevelError
	}
	ctx := context.Background()
	if !l.handler.Enabled(ctx, level) {
		return len(p), nil
	}
	r := slog.NewRecord(time.Now(), level, text, 0)
	r.AddAttrs(slog.String("component", component))
	return len(p), l.handler.Handle(ctx, r)
}
