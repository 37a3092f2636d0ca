package logging

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestExpectedLines checks that a row lowers its own line in its own phase, and nothing else.
func TestExpectedLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := setUp(t, &b, nil, "info", "json")
		kubelet := slog.With("component", "kubelet")
		const message = "Unable to register mirror pod because node is not registered yet"
		log := func() (written []string) {
			kubelet.Error(message, "err", errors.New(`node "mote" not found`))
			kubelet.Error(message, "err", errors.New("forbidden"))
			kubelet.Error(message+" ", "err", errors.New(`node "mote" not found`))
			slog.Error(message, "component", "kube-proxy", "err", errors.New(`node "mote" not found`))
			slog.Error("nobody has seen this before", "component", "kubelet", "err", errors.New("boom"))
			slog.With("component", "kubelet", "err", errors.New(`node "mote" not found`)).Error(message)
			for _, r := range lines(t, &b) {
				require.Equal(t, "ERROR", r["level"])
				written = append(written, r["component"].(string)+" "+r["msg"].(string)+": "+r["err"].(string))
			}
			return written
		}
		others := []string{
			"kubelet " + message + ": forbidden", "kubelet " + message + ` : node "mote" not found`,
			"kube-proxy " + message + `: node "mote" not found`, "kubelet nobody has seen this before: boom",
		}
		require.Equal(t, others, log())
		l.Started()
		time.Sleep(startGrace - time.Second) // on the clock of synctest
		require.Equal(t, others, log())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		own := "kubelet " + message + `: node "mote" not found`
		require.Equal(t, append([]string{own}, append(others, own)...), log())

		slog.Error("reconcile", "component", "containerd", "error", "database not open")
		l.Stopping()
		slog.Error("reconcile", "component", "containerd", "error", "database not open")
		slog.Error("Failed cleaning pods", "component", "kubelet", "err", "rpc error: code = Canceled desc = context canceled")
		slog.Error("Failed cleaning pods", "component", "kubelet", "err", "disk full") // a real error, also during a stop
		require.Len(t, lines(t, &b), 2)
		time.Sleep(3 * limitWindow) // until the limiter's timer ends
	})
}

// TestExpectedLinesAreDebugLines checks that --log-level=debug shows them.
func TestExpectedLinesAreDebugLines(t *testing.T) {
	var b bytes.Buffer
	setUp(t, &b, nil, "debug", "json")
	slog.Error("The manifest file is empty, ignoring.", "component", "kubernetes")
	got := lines(t, &b)
	require.Len(t, got, 1)
	require.Equal(t, "DEBUG", got[0]["level"])
}

// TestExpectedTable checks that each row has a reason and a source, and that none matches more than
// one kind of line.
func TestExpectedTable(t *testing.T) {
	known := Components()
	for _, e := range Expected() {
		require.Contains(t, known, e.Component, e.Message)
		require.NotEmpty(t, e.Reason, e.Message)
		require.True(t, strings.HasPrefix(e.Source, "https://github.com/"), e.Message)
		require.NotZero(t, e.During, e.Message)
		require.Greater(t, len(e.Message)+len(e.Err), 15, "%q and %q say too little", e.Message, e.Err)
		if e.Message == "*" {
			require.Equal(t, Stopping, e.During, "a row must not match every message")
		}
	}
}
