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

// TestGatheringIsRare: clients that ask without pause do not make the collectors run without pause.
func TestGatheringIsRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gathered := 0
		only := Of(prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { gathered++; return nil, nil }), "x_")
		gather := func() {
			_, err := only.Gather()
			require.NoError(t, err)
		}
		for range 100 {
			gather()
		}
		require.Equal(t, 1, gathered)
		time.Sleep(fresh) // of the test's own clock
		gather()
		require.Equal(t, 2, gathered)
	})
}
