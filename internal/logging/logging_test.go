package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"log"
	"log/slog"
	"runtime"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"k8s.io/klog/v2"
)

func lines(t *testing.T, b *bytes.Buffer) []map[string]any {
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

func TestSetupRoutesEveryLogger(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Setup(&b, nil, "info", "json"))
	slog.Info("own", "component", "mote")
	klog.InfoS("routine of an upstream part")
	klog.ErrorS(errors.New("boom"), "upstream error", "pod", "p")
	logrus.Info("routine of containerd")
	logrus.WithField("id", "x").Warn("containerd warning")
	log.Print("[INFO] routine of CoreDNS")
	log.Print("http: TLS handshake error")
	log.Print("[ERROR] plugin/errors: 2 a.test. A: i/o timeout")

	got := lines(t, &b)
	require.Len(t, got, 4)
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

// TestKine: its lines are the datastore's, and those with an object in them nobody's.
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
	require.NoError(t, Setup(&b, nil, "debug", "json"))
	klog.InfoS("routine")
	logrus.Info("routine")
	got := lines(t, &b)
	require.Len(t, got, 2)
	require.Equal(t, "DEBUG", got[0]["level"])
}

func TestSetupRefusesUnknownValues(t *testing.T) {
	require.EqualError(t, Setup(nil, nil, "loud", "text"), `log level "loud" is unknown; use one of debug, info, warn, error`)
	require.EqualError(t, Setup(nil, nil, "info", "xml"), `log format "xml" is unknown; use one of text, json`)
}
