package e2e

import (
	"context"
	"crypto/tls"
	_ "embed"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/images"
)

//go:embed testdata/metrics.yaml
var metricsManifest string

//go:embed testdata/metrics-foreign.yaml
var foreignMetrics string

const (
	metricsAPI = "https://10.42.0.1:10251/apis/metrics.k8s.io/v1beta1/nodes"
	// topTimeout is the time from the start of a node or pod to its figures, on a busy machine.
	// oldEnough is the age at which the figures exist without an earlier request.
	topTimeout = time.Minute
	oldEnough  = 30 * time.Second
	// schemaTimeout is the time in which the apiserver fetches an API's schema: a minute after a
	// first try that failed, and two after the next.
	schemaTimeout = 4 * time.Minute
	// scaleTimeout is the time in which an autoscaler acts: two readings of samples 10 s apart, and
	// a pod's start or end.
	scaleTimeout = 2 * time.Minute
)

// TestAddonMetrics requests figures as users and autoscalers do, and tries to get them without
// permission. It disables and enables the addon, with a foreign metrics server in its place
// meanwhile.
func TestAddonMetrics(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	h.Preload(t, program(t, images.WebName, "./test/images/web"))
	args := []string{"--expose-metrics=on"}
	for _, arg := range []string{
		"sync-period=3s", "downscale-stabilization=3s", "cpu-initialization-period=1s", "initial-readiness-delay=1s",
	} {
		args = append(args, "--controller-manager-arg=horizontal-pod-autoscaler-"+arg)
	}
	s := h.StartServer(t, args...)
	s.WaitReady(t)
	waitTop(t, h, "e2e", "top", "node")
	h.Apply(t, metricsManifest)
	h.Kubectl(t, "rollout", "status", "deployment/worker", "--timeout="+podTimeout.String())
	waitTop(t, h, "worker-", "top", "pod")

	t.Run("first question", func(t *testing.T) { testMetricsFirstQuestion(t, h) })
	t.Run("what tools look for", func(t *testing.T) { testMetricsObjects(t, h) })
	t.Run("rights", func(t *testing.T) { testMetricsRights(t, h) })
	t.Run("scrape", func(t *testing.T) {
		testScrape(t, s, h.Kubectl(t, "get", "pods", "-l", "app=worker", "-o", "jsonpath={.items[0].metadata.name}"))
	})
	t.Run("autoscaler on CPU", func(t *testing.T) { testScaleOnCPU(t, h) })
	t.Run("autoscaler on memory", func(t *testing.T) { testScaleOnMemory(t, h) })
	t.Run("off and on", func(t *testing.T) { testMetricsOffAndOn(t, s) })
}

// waitTop waits for figures of an object whose name begins with name.
func waitTop(t *testing.T, h *cluster.Host, name string, args ...string) {
	t.Helper()
	cluster.Wait(t, topTimeout, strings.Join(args, " "), func() error {
		r := h.Try(t, nil, append([]string{"mote", "kubectl"}, args...)...)
		for line := range strings.Lines(r.Stdout) {
			f := strings.Fields(line)
			if r.Code == 0 && len(f) >= 3 && strings.HasPrefix(f[0], name) && strings.HasSuffix(f[1], "m") {
				return nil
			}
		}
		return fmt.Errorf("%s%s", r.Stdout, r.Stderr)
	})
}

// testMetricsFirstQuestion sends one request for a new pod that nothing has requested before.
func testMetricsFirstQuestion(t *testing.T, h *cluster.Host) {
	h.Kubectl(t, "create", "deployment", "fresh", "--image=localhost/test/web:1")
	h.Kubectl(t, "rollout", "status", "deployment/fresh", "--timeout="+podTimeout.String())
	started := time.Now()
	cluster.Wait(t, time.Minute, "the pod to be old enough", func() error {
		if age := time.Since(started); age < oldEnough {
			return fmt.Errorf("it is %v old", age)
		}
		return nil
	})
	wantContains(t, "top pod", h.Kubectl(t, "top", "pod"), "fresh-")
	h.Kubectl(t, "delete", "deployment", "fresh")
}

func testMetricsObjects(t *testing.T, h *cluster.Host) {
	h.Kubectl(t, "wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", "--timeout=1m")
	wantContains(t, "api-resources", h.Kubectl(t, "api-resources", "--api-group=metrics.k8s.io"), "PodMetrics", "NodeMetrics")
	h.WaitKubectl(t, schemaTimeout, func(out string) bool { return strings.Contains(out, "usage") },
		"explain", "--api-version=metrics.k8s.io/v1beta1", "pods.containers")
	wantContains(t, "podmetrics", h.Kubectl(t, "get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods"),
		`"window"`, `"memory"`, `"app":"worker"`)
	wantContains(t, "the process's metrics", h.Kubectl(t, "get", "--raw", "/metrics"), `metrics_server_kubelet_request_total{success="true"}`)
	// The deletion of a namespace asks every API for its objects in it.
	h.Kubectl(t, "create", "namespace", "short")
	h.Kubectl(t, "delete", "namespace", "short", "--timeout=1m")
}

// testMetricsRights sends requests as users with and without permission, through the apiserver and
// directly.
func testMetricsRights(t *testing.T, h *cluster.Host) {
	h.Kubectl(t, "top", "pod", "--as=viewer")
	if r := h.Try(t, nil, "mote", "kubectl", "top", "node", "--as=viewer"); r.Code == 0 {
		t.Errorf("who may see one namespace sees nodes: %s", r.Stdout)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: h.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the test checks which clients are served
	}}
	defer client.CloseIdleConnections()
	token := strings.TrimSpace(h.Kubectl(t, "create", "token", "default"))
	may := strings.TrimSpace(h.Kubectl(t, "create", "token", "-n", "kube-system", "generic-garbage-collector"))
	for _, c := range []struct {
		what, key, value string
		want             int
	}{
		{"nobody", "Accept", "application/json", http.StatusUnauthorized},
		{"who says to be the administrator", "X-Remote-User", "admin", http.StatusUnauthorized},
		{"a pod's account", "Authorization", "Bearer " + token, http.StatusForbidden},
		{"an account that may read all", "Authorization", "Bearer " + may, http.StatusOK},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, metricsAPI, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(c.key, c.value)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s gets %s, want %d", c.what, resp.Status, c.want)
		}
	}
}

// waitReplicas waits until ok returns true for a deployment's number of replicas.
func waitReplicas(t *testing.T, h *cluster.Host, deployment, what string, ok func(n string) bool) {
	t.Helper()
	h.WaitKubectl(t, scaleTimeout, ok, "get", "deployment", deployment, "-o", "jsonpath={.status.readyReplicas}")
	t.Logf("%s: %s after %s", deployment, what, h.Kubectl(t, "get", "hpa", deployment, "--no-headers"))
}

func testScaleOnCPU(t *testing.T, h *cluster.Host) {
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: h.Dial, MaxIdleConnsPerHost: 4}}
	for range 4 {
		callers.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+nodeIP+":30081/", nil)
				if err != nil {
					return
				}
				if resp, err := client.Do(req); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); callers.Wait(); client.CloseIdleConnections() })
	waitReplicas(t, h, "worker", "rose", func(n string) bool { return n == "3" })
	cancel()
	callers.Wait()
	waitReplicas(t, h, "worker", "fell", func(n string) bool { return n == "1" })
}

func testScaleOnMemory(t *testing.T, h *cluster.Host) {
	waitReplicas(t, h, "hoarder", "rose", func(n string) bool { return n == "2" })
	h.Kubectl(t, "patch", "hpa", "hoarder", "--type=json", "-p",
		`[{"op":"replace","path":"/spec/metrics/0/resource/target/averageValue","value":"1Gi"}]`)
	waitReplicas(t, h, "hoarder", "fell", func(n string) bool { return n == "1" })
}

func testMetricsOffAndOn(t *testing.T, s *cluster.Server) {
	h := s.Host
	restart := func(args ...string) {
		h.Run(t, "mote", "stop")
		s.WaitEnd(t, cluster.StopTimeout)
		s = h.StartServer(t, args...)
		s.WaitReady(t)
	}
	objects := func() string {
		return h.Kubectl(t, "get", "apiservice,service,endpointslice,serviceaccount,clusterrole,clusterrolebinding,rolebinding", "-A",
			"-l", "app.kubernetes.io/managed-by=mote,k8s-app=metrics-server", "-o", "name")
	}
	before := objects()
	restart("--disable=metrics")
	cluster.Wait(t, topTimeout, "nothing of the metrics", func() error {
		if left := objects(); left != "" {
			return fmt.Errorf("left: %s", left)
		}
		return nil
	})
	waitNoScrapeServices(t, h)
	cluster.Wait(t, topTimeout, "the apiserver to forget the API", func() error {
		if r := h.Try(t, nil, "mote", "kubectl", "top", "node"); r.Code == 0 || !strings.Contains(r.Stderr, "Metrics API not available") {
			return fmt.Errorf("top node without the addon: %s%s", r.Stdout, r.Stderr)
		}
		return nil
	})
	// mote does not change a foreign metrics server, and puts nothing of its own beside it.
	h.Apply(t, foreignMetrics)
	restart()
	h.WaitKubectl(t, topTimeout, func(out string) bool { return strings.Contains(out, "it is not mote's") },
		"get", "events", "--field-selector", "involvedObject.name=v1beta1.metrics.k8s.io,reason=NotOurs", "-o", "jsonpath={.items[*].message}")
	if ours := objects(); ours != "" {
		t.Errorf("beside somebody else's: %s", ours)
	}
	if got := h.Kubectl(t, "get", "apiservice", "v1beta1.metrics.k8s.io", "-o", "jsonpath={.spec.service.name}"); got != "theirs" {
		t.Errorf("their APIService leads to %q", got)
	}
	h.Kubectl(t, "delete", "apiservice", "v1beta1.metrics.k8s.io")
	restart()
	cluster.Wait(t, topTimeout, "the metrics to be back", func() error {
		if after := objects(); after != before {
			return fmt.Errorf("before %s, after %s", before, after)
		}
		return nil
	})
	waitTop(t, h, "e2e", "top", "node")
}
