package server

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
)

// TestClusterNames merges the kubeconfigs of two clusters, as kubectl does: each context leads to
// its own cluster.
func TestClusterNames(t *testing.T) {
	one, two := testConfig(t), testConfig(t)
	one.ClusterName, two.ClusterName = "mote-one", "mote-two"
	two.ListenPort = 7443
	for _, cfg := range []Config{one, two} {
		_, err := Prepare(cfg)
		require.NoError(t, err)
	}
	rules := clientcmd.ClientConfigLoadingRules{Precedence: []string{one.AdminKubeconfig, two.AdminKubeconfig}}
	merged, err := rules.Load()
	require.NoError(t, err)
	for context, server := range map[string]string{"mote-one": "https://127.0.0.1:6443", "mote-two": "https://127.0.0.1:7443"} {
		rc, err := clientcmd.NewNonInteractiveClientConfig(*merged, context, nil, nil).ClientConfig()
		require.NoError(t, err)
		require.Equal(t, server, rc.Host, context)
		own, err := clientcmd.BuildConfigFromFlags("", map[string]string{"mote-one": one.AdminKubeconfig, "mote-two": two.AdminKubeconfig}[context])
		require.NoError(t, err)
		require.Equal(t, own.CertData, rc.CertData, "%s has the other's user", context)
		require.Equal(t, own.CAData, rc.CAData, "%s has the other's authority", context)
	}
}

// TestRenamedCluster checks that a kubeconfig from the time when every cluster was called mote
// keeps its context and the namespace in it.
func TestRenamedCluster(t *testing.T) {
	cfg := testConfig(t)
	_, err := Prepare(cfg)
	require.NoError(t, err)
	old, err := clientcmd.LoadFromFile(cfg.AdminKubeconfig)
	require.NoError(t, err)
	require.Equal(t, "mote", old.CurrentContext)
	old.Contexts["mote"].Namespace = "shop"
	require.NoError(t, clientcmd.WriteToFile(*old, cfg.AdminKubeconfig))

	cfg.ClusterName = "mote-one"
	for range 2 {
		_, err = Prepare(cfg)
		require.NoError(t, err)
		is, err := clientcmd.LoadFromFile(cfg.AdminKubeconfig)
		require.NoError(t, err)
		require.Equal(t, "mote-one", is.CurrentContext)
		require.Len(t, is.Clusters, 1)
		for _, context := range []string{"mote", "mote-one"} {
			require.Equal(t, "mote-one", is.Contexts[context].Cluster)
			require.Equal(t, "shop", is.Contexts[context].Namespace)
		}
	}
}
