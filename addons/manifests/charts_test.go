package manifests

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-k8s/mote/addons/api"
)

// TestPanicOfHelmIsAnError: charts without a cluster have nothing to ask, and Helm's clients cannot be made.
func TestPanicOfHelmIsAnError(t *testing.T) {
	c := &charts{}
	err := c.install(t.Context(), &chart{Chart: "shop", Name: "store", Namespace: "mall"}, false)
	require.ErrorContains(t, err, "release mall/store: Helm panicked")
	require.ErrorContains(t, c.uninstall(t.Context(), "mall/store"), "release mall/store: Helm panicked")
}

// TestChartThatEndsTheProcessIsLeftAlone: each try is in the cluster before it begins, where the next process finds it.
func TestChartThatEndsTheProcessIsLeftAlone(t *testing.T) {
	s := newSet("node", "store.chart.yaml")
	restart := func() {
		config := s.parent("node").Object.(*corev1.ConfigMap)
		config.Labels[api.ManagedBy] = api.Mote
		sets, err := loadSets(t.Context(), fake.NewClientset(config), "node")
		require.NoError(t, err)
		s = sets["store.chart.yaml"]
	}
	for range maxTries {
		require.True(t, s.try("1"))
		restart()
	}
	require.False(t, s.try("1"))
	restart()
	require.False(t, s.try("1"))
	require.True(t, s.try("2"), "it has changed")
	s.tries = 0 // it came back
	restart()
	require.Zero(t, s.tries)
}
