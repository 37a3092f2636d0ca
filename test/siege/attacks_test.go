package siege

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
)

// assault is one attack: a number of pods with besieger's arguments, or pods of its own.
type assault struct {
	name, about string
	args        []string
	pods        int
	manifest    string                   // instead of args
	before      func(*testing.T, *scene) // a preparation that the attack needs
	dies        bool                     // its pods cannot report their counts
	after       func(*testing.T, *scene) // an additional condition at the end
}

const (
	kubelet = nodeIP + ":10250"
	api     = "10.43.0.1:443"
	ingress = nodeIP + ":80"
	resolve = "10.43.0.10:53"
)

// assaults returns all attacks. Each names its public report or weakness if it has one.
func assaults() []assault {
	at := func(target string, more ...string) []string { return append([]string{"-target", target}, more...) }
	web := func(count int, more ...string) []string {
		return append(at(ingress, "-host", "hall.test", "-count", fmt.Sprint(count)), more...)
	}
	return []assault{
		{name: "idle-kubelet", about: "24,000 idle connections to the kubelet's port", args: attack("idle", at(kubelet, "-count", "12000")), pods: 2},
		{name: "idle-api", about: "24,000 idle connections to the API", args: attack("idle", at(api, "-count", "12000")), pods: 2},
		{name: "idle-ingress", about: "24,000 idle connections to the Ingress", args: attack("idle", at(ingress, "-count", "12000")), pods: 2},
		{name: "slow-header", about: "6,000 requests whose header never ends (Slowloris)", args: attack("slow-header", web(6000))},
		{name: "slow-body", about: "6,000 bodies of a byte a second", args: attack("slow-body", web(6000))},
		{name: "slow-reader", about: "1,000 large answers that are read a byte a second", args: attack("slow-reader", web(1000, "-path", "/large"))},
		{name: "huge-headers", about: "200 headers without end", args: attack("huge-headers", web(200))},
		{name: "streams", about: "300 HTTP/2 connections of 128 streams, each with a 12 KiB header and an unfinished body", args: attack("streams", web(300))},
		{name: "resets", about: "50 HTTP/2 connections that open and reset streams (CVE-2023-44487)", args: attack("resets", web(50))},
		{name: "smuggling", about: "requests with two lengths or encodings (request smuggling)", args: attack("smuggling", web(1)), after: nothingSmuggled},
		{name: "dns-pipeline", about: "500 DNS connections over TCP that ask without reading", args: attack("dns-pipeline", at(resolve, "-count", "500"))},
		{name: "dns-flood", about: "DNS over UDP as fast as 64 workers can, a name of its own each time", args: attack("dns-flood", at(resolve, "-count", "64"))},
		{name: "exec", about: "50 commands that print without end, never read", args: attack("exec", []string{"-host", "noisy", "-count", "50"})},
		{name: "logs", about: "200 followers of a log, never read", args: attack("logs", []string{"-host", "noisy", "-count", "200"})},
		{name: "forward", about: "100 forwarded ports with a large page each, never read", args: attack("forward", []string{"-host", "yard", "-count", "100"})},
		{name: "watches", about: "5,000 watches with a pod's token", args: attack("watches", []string{"-count", "5000"})},
		{name: "writes", about: "ConfigMaps of 10 kB and Events at full speed with a pod's token", args: attack("writes", []string{"-count", "64"}), after: clearWrites},
		{name: "pulls", about: "images of a hostile registry: endless layer, decompression bomb, wrong digest", manifest: pulls, before: startRegistry, after: nothingPulled},
		{name: "fork-bomb", about: "a fork bomb in a pod without limits", args: attack("fork-bomb", nil), dies: true},
		{name: "memory-hog", about: "a pod without limits that takes all memory", args: attack("memory-hog", nil), dies: true},
	}
}

func attack(name string, args []string) []string { return append([]string{"attack", name}, args...) }

// manifestOf returns the manifest of the attack's pods. They have no requests and no limits.
func (a assault) manifestOf(last time.Duration) string {
	if a.manifest != "" {
		return a.manifest
	}
	var out strings.Builder
	for i := range max(1, a.pods) {
		fmt.Fprintf(&out, `---
apiVersion: v1
kind: Pod
metadata: {name: %s-%d, namespace: siege, labels: {siege: attack}}
spec:
  restartPolicy: Never
  serviceAccountName: besieger
  terminationGracePeriodSeconds: 1
  containers:
  - {name: besieger, image: %q, command: ["/program", "%s", "-for", "%s"]}
`, a.name, i, besieger, strings.Join(a.args, `", "`), last)
	}
	return out.String()
}

// hostileRegistry is on the node's loopback, where containerd needs no TLS.
const hostileRegistry = `
apiVersion: v1
kind: Pod
metadata: {name: registry, namespace: siege, labels: {siege: attack}}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: registry
    image: localhost/test/besieger:1
    command: [/program, registry]
    readinessProbe: {tcpSocket: {host: 127.0.0.1, port: 5001}, periodSeconds: 1}
`

// pulls asks for the images of the hostile registry.
const pulls = `
apiVersion: v1
kind: Pod
metadata: {name: endless, namespace: siege, labels: {siege: attack}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "127.0.0.1:5001/endless:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: bomb, namespace: siege, labels: {siege: attack}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "127.0.0.1:5001/bomb:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: digest, namespace: siege, labels: {siege: attack}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: c, image: "127.0.0.1:5001/digest:1"}]}
`

func nothingSmuggled(t *testing.T, s *scene) {
	if count := strings.TrimSpace(s.get(t, s.podIP(t, "town", "hall")+":8080", "/count")); count != "0" {
		t.Errorf("%s hidden requests reached the backend, want none", count)
	}
}

func clearWrites(t *testing.T, s *scene) {
	for _, kind := range []string{"configmaps", "events"} {
		s.h.Kubectl(t, "delete", "-n", "siege", kind, "--all", "--wait=false")
	}
}

// startRegistry runs the hostile registry and waits until it serves.
func startRegistry(t *testing.T, s *scene) {
	s.h.Apply(t, hostileRegistry)
	s.h.Kubectl(t, "wait", "-n", "siege", "--for=condition=Ready", "pod/registry", "--timeout="+podTimeout.String())
}

// nothingPulled checks that the node has no image of the hostile registry. The disk space of its
// layers is freed with the pulls.
func nothingPulled(t *testing.T, s *scene) {
	if list := s.h.Run(t, "mote", "image", "list"); strings.Contains(list, "127.0.0.1:5001") {
		t.Errorf("an image of the hostile registry stayed:\n%s", list)
	}
	const ingest = "/var/lib/mote/agent/containerd/io.containerd.content.v1.content/ingest"
	cluster.Wait(t, returnTime, "the endless layer to be given back", func() error {
		if size := s.h.Run(t, "du", "-sk", ingest); len(strings.Fields(size)[0]) > 4 {
			return fmt.Errorf("unfinished pulls hold %s", size)
		}
		return nil
	})
}
