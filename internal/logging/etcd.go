package logging

import (
	"bytes"
	"context"
	"log/slog"
	"net/url"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.uber.org/zap"
)

// zapScheme is the URL scheme of the output for zap loggers that are made after this package's init
// function.
const zapScheme = "mote-log"

// init routes the logger of the apiserver's etcd clients. k8s.io/apiserver makes that logger in an
// init function of its own, from this configuration, and exports no way to replace it:
// https://github.com/kubernetes/kubernetes/blob/v1.36.3/staging/src/k8s.io/apiserver/pkg/storage/storagebackend/factory/etcd3.go#L82
// This init function runs first. Of the packages whose imports are initialised, the first by import
// path is next (the Go specification, "Program initialization"). Every package that this package
// imports is also imported by the other one or comes before it by path. TestEtcdClientLogsHere
// fails if that changes.
func init() {
	sink := func(*url.URL) (zap.Sink, error) { return zapSink{}, nil }
	if err := zap.RegisterSink(zapScheme, sink); err != nil {
		return // the name is taken: zap continues to write to stderr
	}
	logutil.DefaultZapLoggerConfig.OutputPaths = []string{zapScheme + ":"}
	logutil.DefaultZapLoggerConfig.ErrorOutputPaths = []string{zapScheme + ":"}
}

// zapSink sends zap's JSON lines to slog's default, which Setup sets.
type zapSink struct{}

// Sync implements zap.Sink.
func (zapSink) Sync() error { return nil }

// Close implements zap.Sink.
func (zapSink) Close() error { return nil }

// Write implements io.Writer. p is one line: a record, or an error of zap itself.
func (zapSink) Write(p []byte) (int, error) {
	line := bytes.TrimSpace(p)
	fields, err := split(line)
	if err != nil {
		slog.Error("zap cannot log", "component", "kube-apiserver", "err", string(line))
		return len(p), nil
	}
	level, message := slog.LevelDebug, ""
	var attrs []slog.Attr
	for _, f := range fields {
		switch value := plain(f.value); f.key {
		case "ts", "caller", "logger", "stacktrace":
		case "level":
			level = zapLevel(value)
		case "msg":
			message = value
		case "error":
			attrs = append(attrs, slog.String("err", value))
		default:
			attrs = append(attrs, slog.String(f.key, value))
		}
	}
	handler, ctx := slog.Default().Handler(), context.Background()
	if !handler.Enabled(ctx, level) {
		return len(p), nil
	}
	r := slog.NewRecord(time.Now(), level, message, 0)
	r.AddAttrs(slog.String("component", "kube-apiserver"), slog.String("client", "etcd"))
	r.AddAttrs(attrs...)
	return len(p), handler.Handle(ctx, r)
}

// zapLevel returns the level for zap's name of it. Upstream's info is routine.
func zapLevel(name string) slog.Level {
	switch name {
	case "debug", "info":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	}
	return slog.LevelError
}
