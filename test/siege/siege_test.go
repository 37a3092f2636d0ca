// Package siege attacks a real mote server from its own pods, as a tenant without privileges or a
// stranger could, while a good client continues to use the API, the cluster DNS and the Ingress. An
// attack is survived when
//
//   - no request of the good client to the API fails, from a pod or from the machine,
//   - the 99th percentile of its latencies is at most five times that of a quiet time,
//   - the process takes at most 100 MB more memory,
//   - and memory, goroutines and descriptors are back within two minutes.
//
// `scripts/test siege` runs every attack for a minute and writes docs/siege.md when all are
// survived.
package siege

import (
	_ "embed"
	"flag"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/images"
)

const (
	// nodeIP is the address of the bridge, where pods reach the servers in the process.
	nodeIP = "10.42.0.1"
	// podTimeout is for a pod whose image is on the node.
	podTimeout = 2 * time.Minute
	besieger   = "localhost/test/besieger:1"
)

//go:embed testdata/siege.yaml
var manifest string

func TestMain(m *testing.M) {
	flag.Duration("for", 10*time.Second, "how long each attack takes")
	flag.String("attacks", "", "names of the attacks, with commas between them; all when empty")
	flag.Duration("floor", time.Second, "how slow a request may be in any case")
	flag.String("page", "", "file that gets the table")
	cluster.Main(m, "siege")
}

// TestSiege runs one attack after another against one server.
func TestSiege(t *testing.T) {
	last, floor := duration(t, "for"), duration(t, "floor")
	var chosen []string
	if names := flag.Lookup("attacks").Value.String(); names != "" {
		chosen = strings.Split(names, ",")
	}
	s := besiege(t)
	s.floor = float64(floor.Milliseconds())
	s.calm(t)
	table := assaults()
	for _, name := range chosen {
		if !slices.ContainsFunc(table, func(a assault) bool { return a.name == name }) {
			t.Fatalf("no attack %q", name)
		}
	}
	for _, a := range table {
		if chosen != nil && !slices.Contains(chosen, a.name) {
			continue
		}
		t.Run(a.name, func(t *testing.T) { s.withstand(t, a, last) })
	}
	// RUN may have left out attacks: the page is of all.
	if page := flag.Lookup("page").Value.String(); page != "" && !t.Failed() && len(s.rows) == len(table) {
		s.write(t, page, last)
	}
}

func duration(t *testing.T, name string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(flag.Lookup(name).Value.String())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// scene is the server under attack and its good clients.
type scene struct {
	h       *cluster.Host
	server  *cluster.Server
	guestIP string
	admin   *admin
	quiet   measured
	floor   float64 // milliseconds that a request may take in any case
	rows    []row
}

// besiege starts the server and its pods.
func besiege(t *testing.T) *scene {
	t.Helper()
	h := cluster.NewHost(t, cluster.HostConfig{Name: "siege"})
	box, err := images.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	program, err := images.Program(besieger, cluster.Root(), "./test/images/besieger")
	if err != nil {
		t.Fatal(err)
	}
	h.Preload(t, box, program)
	s := &scene{h: h, server: h.StartServer(t)}
	s.server.WaitReady(t)
	h.Apply(t, manifest)
	for _, pod := range []string{"town/hall", "town/guest", "siege/noisy", "siege/yard"} {
		namespace, name, _ := strings.Cut(pod, "/")
		h.Kubectl(t, "wait", "-n", namespace, "--for=condition=Ready", "pod/"+name, "--timeout="+podTimeout.String())
	}
	s.guestIP = h.Kubectl(t, "get", "pod", "-n", "town", "guest", "-o", "jsonpath={.status.podIP}")
	h.WaitKubectl(t, podTimeout, func(out string) bool { return out != "" },
		"get", "ingress", "-n", "town", "hall", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
	s.admin = newAdmin(t, s.server)
	return s
}
