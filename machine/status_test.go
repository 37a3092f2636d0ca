package machine

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/internal/version"
)

func TestNodeIsJudged(t *testing.T) {
	start := time.Now().Truncate(time.Second)
	condition := func(kind corev1.NodeConditionType, status corev1.ConditionStatus, heartbeat time.Time) corev1.NodeCondition {
		return corev1.NodeCondition{Type: kind, Status: status, Message: "because", LastHeartbeatTime: metav1.NewTime(heartbeat)}
	}
	w := &nodeWatch{name: "n1", since: start.Add(time.Millisecond)}
	judge := func(conditions ...corev1.NodeCondition) NodeState {
		return w.judge(&corev1.Node{Status: corev1.NodeStatus{Conditions: conditions}})
	}
	const yes, no = corev1.ConditionTrue, corev1.ConditionFalse
	old := start.Add(-time.Second)

	require.Equal(t, NodeState{Name: "n1", Reason: "no Ready condition yet"}, judge())
	require.Equal(t, NodeState{Name: "n1", Reason: "because"}, judge(condition(corev1.NodeReady, no, start)))
	require.Equal(t, NodeState{Name: "n1", Reason: "no heartbeat yet since mote started"}, judge(condition(corev1.NodeReady, yes, old)))
	require.Equal(t, NodeState{Name: "n1", Ready: true, Trouble: []string{"MemoryPressure: because", `DiskPressure: because; "mote check" compares what is free with the limits`}},
		judge(condition(corev1.NodeMemoryPressure, yes, start), condition(corev1.NodeDiskPressure, yes, start),
			condition(corev1.NodePIDPressure, yes, old), condition(corev1.NodeReady, yes, start)))
	require.Equal(t, NodeState{Name: "n1", Ready: true},
		judge(condition(corev1.NodeReady, yes, start), condition(corev1.NodePIDPressure, no, start), condition("NetworkingReady", yes, start)))
}

// TestPodReason has a pod for each way of not running, and expects the words that kubectl would
// show.
func TestPodReason(t *testing.T) {
	waiting := func(reason string) corev1.ContainerStatus {
		return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: "because"}}}
	}
	ended := func(code int32) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: "Error"}}}
	}
	for want, status := range map[string]corev1.PodStatus{
		"": {Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
			InitContainerStatuses: []corev1.ContainerStatus{ended(0)}},
		"ErrImagePull because":     {Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{waiting("ErrImagePull")}},
		"CrashLoopBackOff because": {Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{waiting("CrashLoopBackOff")}},
		"InitBackOff because": {Phase: corev1.PodPending, InitContainerStatuses: []corev1.ContainerStatus{waiting("InitBackOff")},
			ContainerStatuses: []corev1.ContainerStatus{waiting("PodInitializing")}},
		"Error container c ended with exit code 3": {Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{ended(3)}},
		"Evicted because":                          {Phase: corev1.PodFailed, Reason: "Evicted", Message: "because"},
		"Unschedulable because": {Phase: corev1.PodPending, Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "because"}}},
		"ContainersNotReady because": {Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "ContainersNotReady", Message: "because"}}},
	} {
		reason, message := podReason(&corev1.Pod{Status: status})
		require.Equal(t, want, strings.TrimSpace(reason+" "+message))
	}
	reason, _ := podReason(&corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded, ContainerStatuses: []corev1.ContainerStatus{ended(0)}}})
	require.Empty(t, reason)
}

func TestStatusSocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	path := filepath.Join(t.TempDir(), "run", "mote.sock")
	_, err := askStatus(t.Context(), path)
	require.ErrorIs(t, err, ErrNotRunning)

	want := Report{Version: version.Info{Mote: "v1.2.3"}, PID: 42, Started: time.Now().Round(0).UTC(), DataDir: "/data", Node: NodeState{Name: "n1"}}
	s, err := listenStatus(path, func(context.Context) Report { return want })
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
	requireProfiles(t, path)

	cancel()
	<-done
	_, err = askStatus(t.Context(), path)
	require.ErrorIs(t, err, ErrNotRunning)
}

// requireProfiles requires the profiles of this process on the socket: no port of the cluster has
// them.
func requireProfiles(t *testing.T, socket string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	for path, want := range map[string]string{
		"/debug/pprof/":                    "full goroutine stack dump",
		"/debug/pprof/goroutine?debug=1":   "goroutine profile: total",
		"/debug/pprof/heap?debug=1":        "heap profile:",
		"/debug/pprof/trace?seconds=0.001": "go 1.",
	} {
		response, err := client.Get("http://mote" + path)
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusOK, response.StatusCode, path)
		require.Contains(t, string(body), want, path)
	}
}

// TestStatusSocketReplacesADeadOne replaces the socket that kill -9 leaves, on which no process
// listens.
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
	m := newServiceManager(Env{Getenv: os.Getenv})
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
