package series

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/stretchr/testify/require"
)

// TestOnlyOwnSeriesAreShown, and all series of a family.
func TestOnlyOwnSeriesAreShown(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors.NewGoCollector())
	for _, name := range []string{"coredns_dns_requests_total", "kubeproxy_sync_total", "kubelet_pods", "x_coredns_total"} {
		counter := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "Of a test."}, []string{"pod"})
		counter.WithLabelValues("a").Inc()
		counter.WithLabelValues("b").Add(2)
		registry.MustRegister(counter)
	}
	response := httptest.NewRecorder()
	Handler(Of(registry, "coredns_", "kubeproxy_")).ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, response.Code)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "coredns_dns_requests_total{pod=\"a\"} 1\ncoredns_dns_requests_total{pod=\"b\"} 2\n")
	require.Contains(t, string(body), "kubeproxy_sync_total{")
	require.Contains(t, string(body), "go_goroutines ")
	require.NotContains(t, string(body), "kubelet_pods")
	require.NotContains(t, string(body), "x_coredns_total")
}
