package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// testKubeconfig uses the cluster's kubeconfig from elsewhere: the test is no process of the host,
// and calls the API at an address other than loopback.
func testKubeconfig(t *testing.T, h *cluster.Host) {
	features.Row(t, "A30", "a kubeconfig for another machine verifies the API and is the administrator's; merged and removed, other contexts stay")
	text := h.Run(t, "mote", "kubeconfig", "--server", nodeIP)
	wantContains(t, "the kubeconfig", text, "server: https://"+nodeIP+":6443", "current-context: mote-e2e")
	config, err := clientcmd.RESTConfigFromKubeConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	config.Dial = h.Dial
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if nodes, err := client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil || len(nodes.Items) != 1 {
		t.Errorf("nodes by the kubeconfig for another machine: %v, %v", nodes, err)
	}
	if r := h.Try(t, nil, "mote", "kubeconfig", "--server", "elsewhere.example"); r.Code != 1 || !strings.Contains(r.Stderr, "--tls-san=elsewhere.example") {
		t.Errorf("mote kubeconfig for a name that is not in the certificate: %+v", r)
	}

	merged := filepath.Join(h.Dir, "config")
	const others = `{apiVersion: v1, kind: Config, current-context: others, clusters: [{name: others, cluster: {server: "https://192.0.2.1"}}],
contexts: [{name: others, context: {cluster: others, user: others}}], users: [{name: others, user: {token: x}}]}`
	if err := os.WriteFile(merged, []byte(others), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Run(t, "mote", "kubeconfig", "--merge", merged)
	h.Run(t, "mote", "kubectl", "--kubeconfig", merged, "--context", "mote-e2e", "get", "nodes")
	h.Run(t, "mote", "kubeconfig", "--remove", merged)
	if names := h.Run(t, "mote", "kubectl", "--kubeconfig", merged, "config", "get-contexts", "-o", "name"); names != "others\n" {
		t.Errorf("contexts after --remove: %q, want others alone", names)
	}
}

// testStatus checks the facts that a user looks for first.
func testStatus(t *testing.T, h *cluster.Host) {
	features.Row(t, "A19", "the status names the API, the node, pods that do not run and why, the disk, certificates")
	h.Kubectl(t, "run", "stuck", "--image=localhost/test/nothere:1", "--image-pull-policy=Never")
	h.WaitKubectl(t, podTimeout, func(out string) bool { return out == "ErrImageNeverPull" },
		"get", "pod", "stuck", "-o", "jsonpath={.status.containerStatuses[0].state.waiting.reason}")
	wantContains(t, "mote status", h.Try(t, nil, "mote", "status").Stdout,
		"https://127.0.0.1:6443, context mote-e2e in "+cluster.Kubeconfig, "e2e, "+nodeIP+", ready", " running, ", "free", "certificates",
		"pod default/stuck: ErrImageNeverPull")
	wantContains(t, "mote status -o yaml", h.Try(t, nil, "mote", "status", "-o", "yaml").Stdout, "running: true", "  api: https://127.0.0.1:6443")
	h.Kubectl(t, "delete", "pod", "stuck", "--now")
}
