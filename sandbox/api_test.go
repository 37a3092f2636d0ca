package sandbox

import (
	"testing"

	"github.com/stretchr/testify/require"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// TestRename checks that a cluster gets the name of its sandbox outside, because the clusters of
// all sandboxes have the same name inside. A cluster with a name of its own keeps it.
func TestRename(t *testing.T) {
	of := func(name string) *clientcmdapi.Config {
		config := clientcmdapi.NewConfig()
		config.Clusters[name] = &clientcmdapi.Cluster{Server: "https://127.0.0.1:6443"}
		config.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: "x"}
		config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: "shop"}
		config.CurrentContext = name
		return config
	}
	config := of(commonName)
	rename(config, "mote-run-1")
	require.Equal(t, of("mote-run-1"), config)

	config = of("lab")
	rename(config, "mote-run-1")
	require.Equal(t, of("lab"), config)
}
