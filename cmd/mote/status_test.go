package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/version"
)

func exampleReport(now time.Time) report {
	return report{
		Version: version.Info{Mote: "v1.2.3"}, PID: 42, Started: now.Add(-time.Minute), DataDir: "/data",
		Node: nodeState{Name: "n1", Reason: "not registered yet"},
		Components: []component.Status{
			{Name: "datastore", State: component.Ready, Since: now.Add(-50 * time.Second), Trouble: []string{"a.yaml: no kind"}},
			{Name: "kube-apiserver", State: component.Starting, Since: now.Add(-3 * time.Second), Error: "/readyz says no"},
			{Name: "kubelet", State: component.Waiting, Since: now.Add(-time.Minute), WaitingFor: []string{"kube-apiserver", "images"}},
		},
		Repairs: []bolt.Repair{{Time: now.Add(-time.Minute), What: "rebuilt the index", Lost: "nothing that matters", Aside: []string{"/data/old"}}},
	}
}

func TestStatusSaysWhatIsMissing(t *testing.T) {
	now := time.Now()
	var out bytes.Buffer
	require.NoError(t, printStatus(&out, exampleReport(now), now))
	require.Equal(t, `mote v1.2.3, pid 42, up 1m0s, data in /data

PART             STATE       SINCE   MISSING
datastore        ready       50s     
kube-apiserver   starting    3s      /readyz says no
kubelet          waiting     1m0s    waits for kube-apiserver, images
node n1          not ready           not registered yet
datastore: a.yaml: no kind

datastore repaired 1m0s ago: rebuilt the index; lost: nothing that matters; the damaged files are kept: /data/old
`, out.String())
	require.EqualError(t, notReady(exampleReport(now), false), "not ready: kube-apiserver, kubelet, node n1")
}

func TestStatusSocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "run", "mote.sock")
	_, err := askStatus(t.Context(), path)
	require.ErrorIs(t, err, errNotRunning)

	want := exampleReport(time.Now().Round(0).UTC())
	s, err := listenStatus(path, func(context.Context) report { return want })
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.serve(ctx) }()

	for range 3 {
		got, err := askStatus(t.Context(), path)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	cancel()
	<-done
	_, err = askStatus(t.Context(), path)
	require.ErrorIs(t, err, errNotRunning)
}

// TestStatusSocketReplacesADeadOne: kill -9 leaves a socket that nobody listens on.
func TestStatusSocketReplacesADeadOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mote.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	s, err := listenStatus(path, nil)
	require.NoError(t, err)
	require.NoError(t, s.listener.Close())
}

func TestServiceManagerIsNotified(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	e := testEnv()
	e.getenv = os.Getenv
	m := newServiceManager(e)
	require.Empty(t, os.Getenv("NOTIFY_SOCKET"), "what we start must not inherit it")

	for state, tell := range map[string]func(){"READY=1": m.ready, "STOPPING=1": m.stopping} {
		tell()
		got := make([]byte, 64)
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := conn.Read(got)
		require.NoError(t, err)
		require.Equal(t, state, string(got[:n]))
	}
}
