package netcheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/mote-k8s/mote/agent"
)

// TestSkipped checks that probes are skipped, with the reason, if they need pods, or Services of
// mote, that do not exist.
func TestSkipped(t *testing.T) {
	for _, c := range []struct {
		proxy   bool
		missing string
		want    map[string]string
	}{
		{true, "no pods", map[string]string{"pod to pod": "no pods", "DNS from pod": "no pods", "DNS from node": ""}},
		{false, "no pods", map[string]string{
			"node to pod": "no pods", "pod to Service": "no pods", "DNS from node": "--proxy=none: Services are not mote's",
		}},
	} {
		b := &bed{Config: Config{OwnDNS: true, OwnProxy: c.proxy}}
		got := map[string]string{}
		for _, p := range b.probes(t.Context(), "10.43.0.1", c.missing) {
			got[p.name] = p.skip
			if p.skip != "" {
				require.Equal(t, agent.Finding{Name: p.name, State: agent.StateSkip, Message: p.skip}, p.run(t.Context()))
			}
		}
		for name, want := range c.want {
			require.Equal(t, want, got[name], name)
		}
	}
}

// TestAnotherNetwork checks that mote's own pod network is not checked where another pod network is
// in use.
func TestAnotherNetwork(t *testing.T) {
	for _, f := range agent.CheckNetwork(t.Context(), agent.Config{CNI: agent.CNINone}) {
		require.Equal(t, agent.StateSkip, f.State, f.Name)
		require.Equal(t, "--cni=none: the pod network is not mote's", f.Message)
	}
}

// TestProbe checks that a path that opens late counts as open, that one that stays shut fails in
// time, and that a probe that only warns is not repeated.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		started := time.Now()
		opens := func(after time.Duration) func(context.Context) (string, error) {
			return func(context.Context) (string, error) {
				if time.Since(started) < after {
					return "", errors.New("cannot connect")
				}
				return "answers", nil
			}
		}
		require.Equal(t, agent.Finding{Name: "a", State: agent.StateOK, Message: "answers"},
			probe{name: "a", try: opens(time.Second)}.run(t.Context()))
		require.Equal(t, agent.Finding{Name: "a", State: agent.StateFail, Message: "cannot connect; look there"},
			probe{name: "a", try: opens(time.Hour), hint: "look there"}.run(t.Context()))
		before := time.Now()
		require.Equal(t, agent.StateWarn, probe{name: "a", try: opens(time.Hour), otherwise: agent.StateWarn}.run(t.Context()).State)
		require.LessOrEqual(t, time.Since(before), probeInterval)
	})
}

// TestEcho checks that only data that comes back unchanged counts.
func TestEcho(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	b := &bed{listener: listener}
	stop := b.serve()
	address := listener.Addr().String()
	message, err := echo("", address)(t.Context())
	require.NoError(t, err)
	require.Equal(t, address+" answers", message)
	stop()
	_, err = echo("", address)(t.Context())
	require.ErrorContains(t, err, "cannot connect: dial tcp "+address)
}

// TestForeignNamespaceStays checks that a namespace with the check's name, but without its label,
// stays.
func TestForeignNamespaceStays(t *testing.T) {
	foreign := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}
	b := &bed{client: fake.NewClientset(foreign)}
	require.ErrorContains(t, b.remove(t.Context()), "namespace mote-check-net is not mote's")
	_, err := b.client.CoreV1().Namespaces().Get(t.Context(), Namespace, metav1.GetOptions{})
	require.NoError(t, err)

	b = &bed{client: fake.NewClientset()}
	require.NoError(t, b.remove(t.Context()), "there is none")
	require.NoError(t, b.create(t.Context()))
	require.NoError(t, b.remove(t.Context()))
	_, err = b.client.CoreV1().Namespaces().Get(t.Context(), Namespace, metav1.GetOptions{})
	require.True(t, apierrors.IsNotFound(err))
}

// TestFailedPodIsNotWaitedFor checks that await returns at once with the reason from the pod's
// status: a failed pod never runs.
func TestFailedPodIsNotWaitedFor(t *testing.T) {
	for want, status := range map[string]corev1.PodStatus{
		"NodeAffinity: not on this node": {Phase: corev1.PodFailed, Reason: "NodeAffinity", Message: "not on this node"},
		"OOMKilled: its process ended with 137": {Phase: corev1.PodFailed, ContainerStatuses: []corev1.ContainerStatus{{
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "OOMKilled", ExitCode: 137}},
		}}},
	} {
		failed := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: clientPod}, Status: status}
		b := &bed{client: fake.NewClientset(failed)}
		synctest.Test(t, func(t *testing.T) {
			started := time.Now()
			_, err := b.await(t.Context(), clientPod)
			require.ErrorContains(t, err, "pod mote-check-net/client: it has failed: "+want)
			require.Zero(t, time.Since(started))
		})
	}
}

// TestInterrupted checks that failures caused by an interruption are no findings, and that nothing
// is left behind.
func TestInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	var removed bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch namespace := "/api/v1/namespaces/" + Namespace; {
		case r.Method == http.MethodPost:
			interrupt() // while the namespace is being made; the server completes this request
			w.WriteHeader(http.StatusInternalServerError)
		case r.Method == http.MethodDelete && r.URL.Path == namespace:
			removed = true
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Success"}`)
		case r.URL.Path == namespace && ctx.Err() != nil && !removed:
			fmt.Fprint(w, `{"kind":"Namespace","apiVersion":"v1","metadata":{"uid":"1","labels":{"app.kubernetes.io/managed-by":"mote"}}}`)
		case r.URL.Path == "/api/v1/namespaces/default/services/kubernetes":
			fmt.Fprint(w, `{"kind":"Service","apiVersion":"v1"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		}
	}))
	defer server.Close()
	findings, err := Run(ctx, Config{Access: &rest.Config{Host: server.URL}, OwnDNS: true, OwnProxy: true})
	require.Empty(t, findings)
	require.EqualError(t, err, "the check was interrupted: context canceled")
	require.True(t, removed)
}
