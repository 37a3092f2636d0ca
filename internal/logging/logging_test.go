package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"runtime"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.uber.org/zap"
	"google.golang.org/grpc/grpclog"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
)

func lines(t *testing.T, b io.Reader) []map[string]any {
	t.Helper()
	var out []map[string]any
	d := json.NewDecoder(b)
	for d.More() {
		var m map[string]any
		require.NoError(t, d.Decode(&m))
		out = append(out, m)
	}
	return out
}

// setUp makes a log with a limiter of its own: no count passes from one test to another.
func setUp(t *testing.T, w io.Writer, history *History, level, format string) *Log {
	t.Helper()
	l, err := Setup(w, history, level, format)
	require.NoError(t, err)
	return l
}

func TestSetupRoutesEveryLogger(t *testing.T) {
	var b bytes.Buffer
	setUp(t, &b, nil, "info", "json")
	slog.Info("own", "component", "mote")
	klog.InfoS("routine of an upstream part")
	klog.ErrorS(errors.New("boom"), "upstream error", "pod", "p")
	logrus.Info("routine of containerd")
	logrus.WithField("id", "x").Warn("containerd warning")
	log.Print("[INFO] routine of CoreDNS")
	log.Print("http: TLS handshake error")
	log.Print("[ERROR] plugin/errors: 2 a.test. A: i/o timeout")
	log.Print("http: Accept error: accept tcp [::]:10250: accept4: too many open files; retrying in 5ms")
	log.Print("http: panic serving 127.0.0.1:4711: boom")
	grpclog.Info("routine of gRPC")
	grpclog.Warning("[core] a connection ended")
	grpclog.Errorf("[transport] %s", "boom")
	zapLogger, err := logutil.CreateDefaultZapLogger(zap.InfoLevel)
	require.NoError(t, err)
	zapLogger.Info("routine of the etcd client")
	zapLogger.Named("etcd-client").Warn("retrying of unary invoker failed", zap.String("target", "etcd-endpoints://x"), zap.Error(errors.New("unavailable")))
	utilruntime.HandleError(errors.New("nobody handles this"))

	got := lines(t, &b)
	require.Len(t, got, 9)
	for i, want := range []map[string]any{
		4: {"level": "WARN", "component": "go", "msg": "http: Accept error: accept tcp [::]:10250: accept4: too many open files; retrying in 5ms"},
		5: {"level": "ERROR", "component": "go", "msg": "http: panic serving 127.0.0.1:4711: boom"},
		6: {"level": "ERROR", "component": "grpc", "msg": "[transport] boom"},
		7: {"level": "WARN", "component": "kube-apiserver", "msg": "retrying of unary invoker failed", "client": "etcd", "target": "etcd-endpoints://x", "err": "unavailable"},
		8: {"level": "ERROR", "component": "kubernetes", "msg": "Unhandled Error", "err": "nobody handles this"},
	} {
		delete(got[i], "time")
		if want != nil {
			require.Equal(t, want, got[i])
		}
	}
	require.Equal(t, "plugin/errors: 2 a.test. A: i/o timeout", got[3]["msg"])
	require.Equal(t, "dns", got[3]["component"])
	require.Equal(t, "own", got[0]["msg"])
	require.Equal(t, "upstream error", got[1]["msg"])
	require.Equal(t, "kubernetes", got[1]["component"])
	require.Equal(t, "boom", got[1]["err"])
	require.Equal(t, "containerd warning", got[2]["msg"])
	require.Equal(t, "containerd", got[2]["component"])
	require.Equal(t, "x", got[2]["id"])
}

// TestKine checks that kine's lines belong to the datastore, and that lines with an object in them
// are dropped.
func TestKine(t *testing.T) {
	var b bytes.Buffer
	h := hook{slog.NewJSONHandler(&b, nil)}
	for _, message := range []string{"Failed to list latest changes", "error in txn put SECRET: boom", "error in put SECRET: boom"} {
		require.NoError(t, h.Fire(&logrus.Entry{
			Level: logrus.ErrorLevel, Message: message, Caller: &runtime.Frame{Function: "github.com/k3s-io/kine/pkg/server.f"},
		}))
	}
	got := lines(t, &b)
	require.Len(t, got, 1)
	require.Equal(t, "datastore", got[0]["component"])
	require.Equal(t, "Failed to list latest changes", got[0]["msg"])
}

func TestSetupAtDebugShowsUpstreamsRoutine(t *testing.T) {
	var b bytes.Buffer
	setUp(t, &b, nil, "debug", "json")
	klog.InfoS("routine")
	logrus.Info("routine")
	got := lines(t, &b)
	require.Len(t, got, 2)
	require.Equal(t, "DEBUG", got[0]["level"])
}

func TestSetupRefusesUnknownValues(t *testing.T) {
	_, err := Setup(nil, nil, "loud", "text")
	require.EqualError(t, err, `log level "loud" is unknown; use one of debug, info, warn, error`)
	_, err = Setup(nil, nil, "info", "xml")
	require.EqualError(t, err, `log format "xml" is unknown; use one of text, json`)
}
