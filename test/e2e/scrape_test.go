package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// scraper is the account of the documentation's Prometheus (docs/how-to/prometheus.md).
const scraper = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: prometheus, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: prometheus}
rules:
- {apiGroups: [""], resources: [nodes/metrics], verbs: [get]}
- {nonResourceURLs: [/metrics, /metrics/slis], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: prometheus}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: prometheus}
subjects: [{kind: ServiceAccount, name: prometheus, namespace: default}]
`

// metricsEndpoint is a component's port, with metric families that it serves.
type metricsEndpoint struct {
	name, url string
	paths     []string
	open      bool // to clients without credentials
	shows     []string
}

func metricsEndpoints() []metricsEndpoint {
	return []metricsEndpoint{
		{
			name: "kube-apiserver", url: "https://10.42.0.1:6443", paths: []string{"/metrics", "/metrics/slis"},
			shows: []string{
				"apiserver_request_total{", "etcd_requests_total{", "mote_listener_connections{", "mote_ingress_requests_bytes ", "workqueue_depth{name=\"autoregister\"",
				"rest_client_requests_total{", "kubernetes_build_info{", `kubernetes_healthcheck{name="etcd"`,
			},
		},
		{
			name: "kubelet", url: "https://10.42.0.1:10250",
			paths: []string{"/metrics", "/metrics/cadvisor", "/metrics/resource", "/metrics/probes", "/metrics/slis"},
			shows: []string{"kubelet_running_pods ", "container_cpu_usage_seconds_total{", "storage_operation_duration_seconds_count{"},
		},
		{
			name: "kube-controller-manager", url: "https://10.42.0.1:10257", paths: []string{"/metrics", "/metrics/slis"},
			shows: []string{"node_collector_zone_size{", "workqueue_depth{name=\"deployment\"", `kubernetes_healthcheck{name="deployment-controller"`},
		},
		{
			name: "kube-scheduler", url: "https://10.42.0.1:10259", paths: []string{"/metrics", "/metrics/slis"},
			shows: []string{"scheduler_schedule_attempts_total{", `kubernetes_healthcheck{name="sched-handler-sync"`},
		},
		{
			name: "kube-proxy", url: "http://10.42.0.1:10249", paths: []string{"/metrics"}, open: true,
			shows: []string{"kubeproxy_sync_proxy_rules_duration_seconds_count"},
		},
		{
			name: "coredns", url: "http://10.42.0.1:9153", paths: []string{"/metrics"}, open: true, shows: []string{"coredns_build_info{"},
		},
	}
}

// testScrape reads all metrics from a pod, as Prometheus does: each endpoint has its own, no series
// appears twice, and a pod without permission gets none.
func testScrape(t *testing.T, s *cluster.Server, pod string) {
	features.Row(t, "G8", "from a pod: each endpoint shows its own series, none twice, and only those with the right read them")
	features.Row(t, "G8", "with --expose-metrics=on, Services with kube-prometheus' labels lead to scheduler, controller manager and kube-proxy")
	h := s.Host
	h.Apply(t, scraper)
	network := containerPID(t, h, pod)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // only permissions are tested here
		DialContext: func(_ context.Context, kind, address string) (conn net.Conn, err error) {
			failed := h.InNetworkOf(network, func() error { conn, err = net.DialTimeout(kind, address, 10*time.Second); return err })
			return conn, failed
		},
	}}
	allowed := strings.TrimSpace(h.Kubectl(t, "create", "token", "prometheus"))
	refused := strings.TrimSpace(h.Kubectl(t, "create", "token", "default"))
	seen := map[string]string{}
	for _, endpoint := range metricsEndpoints() {
		var all strings.Builder
		for _, path := range endpoint.paths {
			for who, token := range map[string]string{"a pod without credentials": "", "a pod's account": refused} {
				status, _ := scrape(t, client, endpoint.url+path, token)
				if open := status == http.StatusOK; open != endpoint.open || !open && status != http.StatusUnauthorized && status != http.StatusForbidden {
					t.Errorf("%s answers %d to %s on %s", endpoint.name, status, who, path)
				}
			}
			status, page := scrape(t, client, endpoint.url+path, allowed)
			if status != http.StatusOK {
				t.Errorf("%s answers %d on %s: %s", endpoint.name, status, path, page)
			}
			all.WriteString("\n" + page)
		}
		wantShows(t, endpoint, all.String())
		for line := range strings.Lines(all.String()) {
			series, _, _ := strings.Cut(line, " ")
			// Labels may have spaces, and a time may follow the value.
			if end := strings.LastIndex(line, "} "); end >= 0 {
				series = line[:end+1]
			}
			if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "go_") || strings.HasPrefix(line, "process_") {
				continue
			}
			if other, ok := seen[series]; ok {
				t.Errorf("%s and %s show %s", endpoint.name, other, series)
			}
			seen[series] = endpoint.name
		}
	}
	log, err := os.ReadFile(s.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "no component owns these metrics") {
			t.Errorf("internal/series/owner.go lacks a row: %s", line)
		}
	}
	testScrapeServices(t, h)
}

// wantShows checks that a page has an endpoint's own series, and none of another endpoint.
func wantShows(t *testing.T, endpoint metricsEndpoint, page string) {
	t.Helper()
	for _, other := range metricsEndpoints() {
		for _, series := range other.shows {
			if shows := strings.Contains(page, "\n"+series); shows != (other.name == endpoint.name) {
				t.Errorf("%s shows %s: %t", endpoint.name, series, shows)
			}
		}
	}
	if endpoint.name != "coredns" && !strings.Contains(page, "\nprocess_resident_memory_bytes ") {
		t.Errorf("%s does not show the memory of its process", endpoint.name)
	}
}

func scrape(t *testing.T, client *http.Client, url, token string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("scrape %s: %v", url, err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("scrape %s: %v", url, err)
	}
	return resp.StatusCode, string(page)
}

// testScrapeServices looks for targets as kube-prometheus' monitors do.
func testScrapeServices(t *testing.T, h *cluster.Host) {
	for name, want := range map[string]string{
		"kube-controller-manager": "10.42.0.1:10257 https-metrics", "kube-scheduler": "10.42.0.1:10259 https-metrics", "kube-proxy": "10.42.0.1:10249 http-metrics",
	} {
		for _, kind := range []struct{ resource, path string }{
			{"endpoints", "{.items[*].subsets[*].addresses[*].ip}:{.items[*].subsets[*].ports[*].port} {.items[*].subsets[*].ports[*].name}"},
			{"endpointslices", "{.items[*].endpoints[*].addresses[*]}:{.items[*].ports[*].port} {.items[*].ports[*].name}"},
		} {
			for _, label := range []string{"app.kubernetes.io/name", "k8s-app"} {
				got := h.Kubectl(t, "get", kind.resource, "-n", "kube-system", "-l", label+"="+name, "-o", "jsonpath="+kind.path)
				if got != want {
					t.Errorf("%s of %s=%s are %q, want %q", kind.resource, label, name, got, want)
				}
			}
		}
	}
}

// waitNoScrapeServices waits until a start without the setting has removed the Services.
func waitNoScrapeServices(t *testing.T, h *cluster.Host) {
	t.Helper()
	cluster.Wait(t, topTimeout, "the Services of metrics ports to be gone", func() error {
		left := h.Kubectl(t, "get", "services,endpoints,endpointslices", "-n", "kube-system", "-o", "name",
			"-l", "app.kubernetes.io/name in (kube-controller-manager,kube-scheduler,kube-proxy)")
		if left != "" {
			return fmt.Errorf("left: %s", left)
		}
		return nil
	})
}
