package series

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// TestOwnersAreUpstreams compares the table with upstream's list of metrics. It fails when a new
// version of Kubernetes has a family without an owner, or one that moved.
func TestOwnersAreUpstreams(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	require.NoError(t, err)
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "test/instrumentation/documentation/documentation-list.yaml"))
	require.NoError(t, err)
	var list []struct {
		Name, Namespace, Subsystem string
		ComponentEndpoints         []struct{ Component, Endpoint string }
	}
	require.NoError(t, yaml.Unmarshal(data, &list))
	require.Greater(t, len(list), 500)
	for _, metric := range list {
		name := metric.Name
		for _, part := range []string{metric.Subsystem, metric.Namespace} {
			if part != "" {
				name = part + "_" + name
			}
		}
		owner, known := Owner(name)
		require.NotEmpty(t, metric.ComponentEndpoints, name)
		where := metric.ComponentEndpoints[0]
		switch {
		// The kubelet has separate registries for these.
		case where.Endpoint == "/metrics/resource", where.Endpoint == "/metrics/probes":
			continue
		// A program of etcd.
		case where.Component == "etcd-version-monitor":
			continue
		case !known:
			t.Errorf("no component owns %s, which upstream has in %v: add it to owners()", name, metric.ComponentEndpoints)
		case len(metric.ComponentEndpoints) > 1: // of all components
		case where.Component == "cloud-controller-manager":
			require.Equal(t, ControllerManager, owner, name)
		default:
			require.Equal(t, Component(where.Component), owner, name)
		}
	}
}
