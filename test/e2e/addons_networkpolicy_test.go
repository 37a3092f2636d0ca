package e2e

import (
	_ "embed"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/images"
)

//go:embed testdata/networkpolicy.yaml
var policyManifest string

const (
	// inForce is the time until a change of policies affects packets, which takes milliseconds on
	// an idle machine, and until a free port is taken: load balancer and ingress check every 15 s.
	inForce     = time.Minute
	policyTable = "mote-networkpolicy"
	// crowdTimeout is for 20 pods that start at once: 8 s on an idle machine.
	crowdTimeout = 3 * time.Minute
)

// policyLab is a cluster with pods web, db and client in namespace red, other in blue, and a
// machine outside.
type policyLab struct {
	t         *testing.T // the whole test's: a server that a part of it starts outlives the part
	h         *cluster.Host
	s         *cluster.Server
	client    *kubernetes.Clientset
	addresses map[string]string
	http      *http.Client
}

func newPolicyLab(t *testing.T, h *cluster.Host, more ...images.Image) *policyLab {
	t.Helper()
	l := &policyLab{t: t, h: h, addresses: map[string]string{"outside": "192.0.2.2", "node": nodeIP}}
	h.Preload(t, append(more, program(t, images.PeerName, "./test/images/peer"))...)
	l.s = h.StartServer(t)
	l.s.WaitReady(t)
	var err error
	if l.client, err = l.s.Client(); err != nil {
		t.Fatal(err)
	}
	l.http = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
	h.Apply(t, policyManifest)
	for namespace, names := range map[string][]string{"red": {"web", "db", "client"}, "blue": {"other"}} {
		for _, name := range names {
			h.Kubectl(t, "wait", "-n", namespace, "--for=condition=Ready", "pod/"+name, "--timeout="+podTimeout.String())
			l.addresses[name] = h.Kubectl(t, "get", "pod", "-n", namespace, name, "-o", "jsonpath={.status.podIP}")
		}
	}
	l.startOutside(t)
	return l
}

// startOutside makes a machine beside the node: a network namespace with a peer in it.
func (l *policyLab) startOutside(t *testing.T) {
	t.Helper()
	file := filepath.Join(l.h.Dir, "peer")
	build := exec.Command("go", "build", "-o", file, "./test/images/peer")
	build.Dir = cluster.Root()
	if printed, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the peer: %v: %s", err, printed)
	}
	for _, command := range []string{
		"ip netns add outside",
		"ip link add outside0 type veth peer name eth0 netns outside",
		"ip addr add 192.0.2.1/24 dev outside0",
		"ip link set outside0 up",
		"ip -n outside addr add 192.0.2.2/24 dev eth0",
		"ip -n outside link set eth0 up",
		"ip -n outside route add default via 192.0.2.1",
	} {
		l.h.Run(t, strings.Fields(command)...)
	}
	peer := exec.Command("ip", "netns", "exec", "outside", file, "serve", "tcp/80", "udp/5353")
	peer.Env = l.h.Environ()
	if err := l.h.Start(peer); err != nil {
		t.Fatalf("start the peer outside: %v", err)
	}
	t.Cleanup(func() { _ = peer.Process.Kill(); _ = peer.Wait() })
	cluster.Wait(t, podTimeout, "the peer outside", func() error { _, err := get(l.http, "http://192.0.2.2:9000/healthz"); return err })
}

// ask sends a command to a pod, or to the machine outside; the node reaches all of them whatever
// the policies are.
func (l *policyLab) ask(who, what string) (string, error) {
	response, err := l.http.Get("http://" + l.addresses[who] + ":9000" + what)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(answer)), err
}

// see checks one expectation: "CLIENT SERVER NETWORK PORT yes|no|refused", or "CLIENT NAME dns -
// yes|no".
func (l *policyLab) see(expectation string) error {
	words := strings.Fields(expectation)
	from, to, network, port, want := words[0], words[1], words[2], words[3], words[4]
	if address, ok := l.addresses[to]; ok {
		to = address
	}
	if network != "dns" {
		to += ":" + port
	}
	within := "3s"
	if want == "no" {
		within = "300ms"
	}
	answer, err := l.ask(from, "/try?"+url.Values{"network": {network}, "address": {to}, "within": {within}}.Encode())
	if err != nil {
		return fmt.Errorf("ask %s: %w", from, err)
	}
	seen := "no"
	switch {
	case answer == "reached":
		seen = "yes"
	case want == "refused" && strings.Contains(answer, "connection refused"):
		seen = want
	}
	if seen != want {
		return fmt.Errorf("%s: %s", strings.TrimSpace(expectation), answer)
	}
	return nil
}

// expect waits for all of the lines. Lines with no come first: they show that the change is in
// force.
func (l *policyLab) expect(t *testing.T, lines string) {
	t.Helper()
	for _, suffix := range []string{"no", "yes", "refused"} {
		for line := range strings.Lines(lines) {
			if line = strings.TrimSpace(line); strings.HasSuffix(line, " "+suffix) {
				cluster.Wait(t, inForce, line, func() error { return l.see(line) })
			}
		}
	}
}

// apply replaces all policies of namespace red, each given as its spec.
func (l *policyLab) apply(t *testing.T, specs ...string) {
	t.Helper()
	policies := l.client.NetworkingV1().NetworkPolicies("red")
	if err := policies.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, spec := range specs {
		np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i)}}
		if err := yaml.UnmarshalStrict([]byte("spec: "+spec), np); err != nil {
			t.Fatal(err)
		}
		if _, err := policies.Create(t.Context(), np, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	denyRed = `{podSelector: {}, policyTypes: [Ingress, Egress]}`
	denyWeb = `{podSelector: {matchLabels: {app: web}}}`
)

// TestAddonNetworkPolicy applies policies of every kind to real pods and checks them from both
// sides.
func TestAddonNetworkPolicy(t *testing.T) {
	l := newPolicyLab(t, cluster.NewHost(t, cluster.HostConfig{}))
	for _, c := range policyCases() {
		t.Run(c.name, func(t *testing.T) {
			l.apply(t, c.specs...)
			l.expect(t, c.expect)
		})
	}
	t.Run("probes", func(t *testing.T) { testPolicyProbes(t, l) })
	t.Run("cut", func(t *testing.T) { testPolicyCuts(t, l) })
	t.Run("labels", func(t *testing.T) { testPolicyLabels(t, l) })
	t.Run("first packet", func(t *testing.T) { testFirstPacket(t, l) })
	t.Run("bad input", func(t *testing.T) { testPolicyBadInput(t, l) })
	t.Run("scale", func(t *testing.T) { testPolicyScale(t, l) })
	t.Run("restart", func(t *testing.T) { testPolicyRestart(t, l) })
	t.Run("off and on", func(t *testing.T) { testPolicyOffAndOn(t, l) })
}

// TestAddonNetworkPolicyWithoutBridgeFilter is for kernels that do not pass bridged packets to
// netfilter.
func TestAddonNetworkPolicyWithoutBridgeFilter(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	h.Run(t, "sh", "-c", `cd /proc/sys/net/bridge && echo 0 >bridge-nf-call-iptables && echo 0 >bridge-nf-call-ip6tables
		mount -t tmpfs -o ro none /proc/sys/net/bridge
		printf '#!/bin/sh\nexit 1\n' >/usr/local/sbin/modprobe && chmod +x /usr/local/sbin/modprobe`)
	l := newPolicyLab(t, h)
	l.expect(t, `
		client web tcp 80 yes
		client 10.43.0.20 tcp 80 yes
		web 10.43.0.20 tcp 80 yes
		client outside tcp 80 yes`)
	l.apply(t, denyWeb)
	l.expect(t, `
		client web tcp 80 no
		client 10.43.0.20 tcp 80 no
		outside 192.0.2.1 tcp 30080 no
		web client tcp 80 yes`)
	l.apply(t, `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}`)
	l.expect(t, `
		db web tcp 80 no
		client web tcp 80 yes
		client 10.43.0.20 tcp 80 yes`)
}

// TestAddonNetworkPolicyIPTables is for machines without nftables.
func TestAddonNetworkPolicyIPTables(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	h.Run(t, "rm", "/usr/sbin/nft")
	l := newPolicyLab(t, h)
	for _, c := range policyCases() {
		t.Run(c.name, func(t *testing.T) {
			l.apply(t, c.specs...)
			l.expect(t, c.expect)
		})
	}
	t.Run("first packet", func(t *testing.T) { testFirstPacket(t, l) })
	t.Run("restart", func(t *testing.T) { testPolicyRestart(t, l) })
	l.apply(t, denyWeb)
	l.expect(t, "client web tcp 80 no")
	if h.Ipsets(t) == nil {
		t.Error("there are no ipsets: this was not iptables")
	}
	h.Run(t, "mote", "reset", "--yes", "--force")
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		if rules := h.Run(t, save); strings.Contains(rules, "MOTE") {
			t.Errorf("left by reset: %s", rules)
		}
	}
	if sets := h.Ipsets(t); sets != nil {
		t.Errorf("left by reset: ipsets %v", sets)
	}
}

// testPolicyProbes checks that the pod's probes succeed: a policy has denied it all traffic for
// some time by now.
func testPolicyProbes(t *testing.T, l *policyLab) {
	l.apply(t, denyRed)
	l.expect(t, "client web tcp 80 no")
	probed := func() (n int) { // the number of probes that the pod has received
		answer, err := l.ask("web", "/probed")
		if _, scanErr := fmt.Sscan(answer, &n); err != nil || scanErr != nil {
			t.Fatal(answer, err, scanErr)
		}
		return n
	}
	before := probed()
	cluster.Wait(t, inForce, "four probes", func() error {
		if n := probed() - before; n < 4 {
			return fmt.Errorf("%d probes so far", n)
		}
		return nil
	})
	pod, err := l.client.CoreV1().Pods("red").Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if status := pod.Status.ContainerStatuses[0]; !status.Ready || status.RestartCount != 0 {
		t.Errorf("ready %v, restarted %d times", status.Ready, status.RestartCount)
	}
}

func testPolicyCuts(t *testing.T, l *policyLab) {
	l.apply(t)
	l.expect(t, "client web tcp 80 yes")
	if answer, err := l.ask("client", "/hold?address="+l.addresses["web"]+":80"); answer != "reached" {
		t.Fatal(answer, err)
	}
	l.apply(t, denyWeb)
	cluster.Wait(t, inForce, "the connection to be cut", func() error {
		if answer, err := l.ask("client", "/held"); answer == "reached" || err != nil {
			return fmt.Errorf("%q, %w", answer, err)
		}
		return nil
	})
}

// testPolicyLabels adds and removes pods and namespaces by their labels.
func testPolicyLabels(t *testing.T, l *policyLab) {
	l.apply(t, `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {friend: "yes"}}}]}]}`)
	l.expect(t, "other web tcp 80 no")
	l.h.Kubectl(t, "label", "namespace", "blue", "friend=yes")
	l.expect(t, "other web tcp 80 yes")
	l.h.Kubectl(t, "label", "namespace", "blue", "friend-")
	l.expect(t, "other web tcp 80 no")
	l.h.Kubectl(t, "label", "pod", "-n", "red", "web", "app=open", "--overwrite")
	l.expect(t, "other web tcp 80 yes")
	l.h.Kubectl(t, "label", "pod", "-n", "red", "web", "app=web", "--overwrite")
	l.expect(t, "other web tcp 80 no")
}

// testFirstPacket starts pods that connect as their first act: denied ones must never get through,
// all others must connect at once.
func testFirstPacket(t *testing.T, l *policyLab) {
	const rounds = 20
	// When the second policy is in force, the first, which is older, is too.
	l.apply(t, `{podSelector: {matchLabels: {app: jailed}}, policyTypes: [Egress]}`, `{podSelector: {matchLabels: {app: db}}}`)
	l.expect(t, `
		client db tcp 80 no
		client web tcp 80 yes`)
	pods := l.client.CoreV1().Pods("red")
	name := func(i int) string { return fmt.Sprintf("first-%d", i) }
	app := func(i int) string {
		if i%4 == 3 {
			return "free" // must not have to wait for long
		}
		return "jailed"
	}
	for i := range rounds {
		grace := int64(0)
		_, err := pods.Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name(i), Labels: map[string]string{"app": app(i)}},
			Spec: corev1.PodSpec{
				TerminationGracePeriodSeconds: &grace,
				Containers: []corev1.Container{{
					Name: "peer", Image: images.PeerName, Command: []string{"/program", "first", "tcp", l.addresses["web"] + ":80"},
				}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range rounds {
		var said string
		cluster.Wait(t, crowdTimeout, name(i), func() error {
			log, err := pods.GetLogs(name(i), &corev1.PodLogOptions{}).DoRaw(t.Context())
			if said = strings.TrimSpace(string(log)); err != nil || said == "" {
				return fmt.Errorf("it has said nothing yet: %v", err)
			}
			return nil
		})
		t.Log(app(i), said)
		if (said == "never reached") != (app(i) == "jailed") {
			t.Errorf("%s pod: %s", app(i), said)
		}
	}
	l.h.Kubectl(t, "delete", "pods", "-n", "red", "-l", "app in (free, jailed)", "--wait=false")
}

func testPolicyBadInput(t *testing.T, l *policyLab) {
	l.apply(t, `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: "fd00::/8"}}]}]}`, `{podSelector: {matchLabels: {app: db}}}`)
	l.h.WaitKubectl(t, inForce, func(out string) bool { return strings.Contains(out, "ipBlock fd00::/8 is of no effect") },
		"get", "events", "-n", "red", "--field-selector", "reason=NotEnforceable,involvedObject.name=p0", "-o", "jsonpath={.items[*].message}")
	waitTrouble(t, l.h, "networkpolicy: NetworkPolicy red/p0: spec.ingress[0], peer 0: ipBlock fd00::/8 is of no effect", true)
	l.expect(t, `
		client web tcp 80 no
		client db tcp 80 no
		web client tcp 80 yes`)
	l.apply(t)
	waitTrouble(t, l.h, "red/p0", false)
}

// testPolicyRestart checks that policies hold while mote is down, while it starts, and afterwards.
func testPolicyRestart(t *testing.T, l *policyLab) {
	l.apply(t)
	// This policy must be the one that denies, and not an earlier one on its way out.
	l.expect(t, "client web tcp 80 yes")
	l.apply(t, denyWeb)
	// Three times: one denial may come from a machine that is slow to admit, and the policy gets no
	// second chance to come into force.
	l.expect(t, `
		client web tcp 80 no
		client web tcp 80 no
		client web tcp 80 no
		web client tcp 80 yes`)
	l.s.Kill()
	steady := func() {
		if err := l.see("client web tcp 80 no"); err != nil {
			t.Error(err)
		}
		if err := l.see("web client tcp 80 yes"); err != nil {
			t.Error(err)
		}
	}
	steady()
	l.s = l.h.StartServer(l.t)
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ready:
				return
			default:
				steady()
			}
		}
	}()
	stop := sync.OnceFunc(func() { close(ready); <-done })
	defer stop()
	l.s.WaitReady(t)
	stop()
	steady()
	// kube-proxy's rules, which came before mote's this time, still apply.
	l.expect(t, "client 10.43.0.21 tcp 80 refused")
	l.h.Kubectl(t, "delete", "networkpolicy", "-n", "red", "--all")
	l.expect(t, "client web tcp 80 yes")
}

func testPolicyOffAndOn(t *testing.T, l *policyLab) {
	l.apply(t, denyWeb)
	l.expect(t, "client web tcp 80 no")
	l.restart(t, "--disable=networkpolicy")
	l.expect(t, "client web tcp 80 yes")
	if tables := l.h.Run(t, "nft", "list", "tables"); strings.Contains(tables, policyTable) {
		t.Errorf("left: %s", tables)
	}
	l.restart(t)
	l.expect(t, "client web tcp 80 no")
	l.h.Run(t, "mote", "reset", "--yes", "--force")
	if tables := l.h.Run(t, "nft", "list", "tables"); strings.Contains(tables, "mote") {
		t.Errorf("left by reset: %s", tables)
	}
}
