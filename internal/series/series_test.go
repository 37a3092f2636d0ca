package series

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/require"
)

func components() []Component {
	return []Component{APIServer, ControllerManager, Scheduler, Kubelet, KubeProxy, CoreDNS}
}

// registryOf returns a registry with counters of these names, which have the label "name" and count
// 1 for each value.
func registryOf(names []string, values ...string) *prometheus.Registry {
	registry := prometheus.NewPedanticRegistry()
	for _, name := range names {
		counter := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "Of a test."}, []string{"name"})
		for _, value := range values {
			counter.WithLabelValues(value).Inc()
		}
		registry.MustRegister(counter)
	}
	return registry
}

// TestOnlyOwnSeriesAreShown checks that the other components' series are left out, and that no
// series of a family is missing.
func TestOnlyOwnSeriesAreShown(t *testing.T) {
	registry := registryOf([]string{"coredns_dns_requests_total", "kubeproxy_sync_total", "kubelet_pods", "x_coredns_total"}, "a", "b")
	registry.MustRegister(collectors.NewGoCollector())
	response := httptest.NewRecorder()
	Handler(Of(registry, CoreDNS)).ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, response.Code)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "coredns_dns_requests_total{name=\"a\"} 1\ncoredns_dns_requests_total{name=\"b\"} 1\n")
	require.Contains(t, string(body), "go_goroutines ")
	require.NotContains(t, string(body), "kubelet_pods")
	require.NotContains(t, string(body), "kubeproxy_sync_total")
	require.NotContains(t, string(body), "x_coredns_total")
}

// TestEverySeriesHasOneEndpoint checks that all endpoints together show each series of the registry
// exactly once.
func TestEverySeriesHasOneEndpoint(t *testing.T) {
	registry := registryOf([]string{
		"apiserver_request_total", "node_authorizer_x_total", "node_collector_x_total", "scheduler_x_total", "kubelet_x_total",
		"kubeproxy_x_total", "coredns_x_total", "mote_x_total", "workqueue_adds_total", "kubernetes_healthcheck", "kubernetes_healthchecks_total",
		"volume_operation_total_seconds", "volume_operation_total_errors", "nobody_knows_total",
	}, "autoregister", "deployment", "deployment-controller", "poststarthook/x-controller", "kubelet_log_rotate_manager", "syncloop",
		"sched-handler-sync", "ping", "DynamicServingCertificateController")
	seen := map[string]Component{}
	for _, c := range components() {
		families, err := Of(registry, c).Gather()
		require.NoError(t, err)
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				key := family.GetName() + "/" + metric.GetLabel()[0].GetValue()
				require.NotContains(t, seen, key, "%s shows it too", c)
				seen[key] = c
			}
		}
	}
	all, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range all {
		for _, metric := range family.GetMetric() {
			require.Contains(t, seen, family.GetName()+"/"+metric.GetLabel()[0].GetValue(), "it is lost")
		}
	}
	for key, want := range map[string]Component{
		"node_authorizer_x_total/ping": APIServer, "node_collector_x_total/ping": ControllerManager, "nobody_knows_total/ping": APIServer,
		"volume_operation_total_seconds/ping": Kubelet, "volume_operation_total_errors/ping": ControllerManager,
		"workqueue_adds_total/autoregister": APIServer, "workqueue_adds_total/deployment": ControllerManager,
		"workqueue_adds_total/kubelet_log_rotate_manager":          Kubelet,
		"workqueue_adds_total/DynamicServingCertificateController": APIServer,
		"kubernetes_healthcheck/deployment-controller":             ControllerManager,
		"kubernetes_healthcheck/poststarthook/x-controller":        APIServer,
		"kubernetes_healthchecks_total/sched-handler-sync":         Scheduler,
		"kubernetes_healthcheck/syncloop":                          Kubelet,
	} {
		require.Equal(t, want, seen[key], key)
	}
}

// TestGatheringIsRare checks that clients that ask without pause do not make the collectors run
// without pause, and that the collected metrics are dropped later.
func TestGatheringIsRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		collected, name := 0, "coredns_x"
		only := Of(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
			collected++
			return []*dto.MetricFamily{{Name: &name}}, nil
		}), CoreDNS)
		gather := func() {
			families, err := only.Gather()
			require.NoError(t, err)
			require.Len(t, families, 1)
		}
		for range 100 {
			gather()
		}
		require.Equal(t, 1, collected)
		time.Sleep(fresh) // on the clock of synctest
		synctest.Wait()
		require.Nil(t, only.(*some).families)
		gather()
		require.Equal(t, 2, collected)
	})
}

// TestMetricsCannotBeReset guards against upstream's handler of the scheduler, which empties the
// registry of the whole process.
func TestMetricsCannotBeReset(t *testing.T) {
	for _, page := range Endpoints(Scheduler) {
		response := httptest.NewRecorder()
		page.ServeHTTP(response, httptest.NewRequest(http.MethodDelete, "/metrics", nil))
		require.Equal(t, http.StatusMethodNotAllowed, response.Code)
	}
}
