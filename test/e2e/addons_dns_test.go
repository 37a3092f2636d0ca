package e2e

import (
	_ "embed"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

//go:embed testdata/dns.yaml
var dnsManifest string

const (
	clusterDNS = "10.43.0.10:53"
	// dnsTimeout is the time until the answer for a changed Service or Corefile: milliseconds on an
	// idle machine.
	dnsTimeout = time.Minute
)

// TestAddonDNS sends queries to the cluster's DNS as pods and the node do: without any upstream,
// with one, and with one that leads back. It breaks the Corefile, and disables and enables the
// addon.
func TestAddonDNS(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	h.Preload(t, busybox(t), program(t, images.WebName, "./test/images/web"))
	s := h.StartServer(t)
	s.WaitReady(t)
	h.Apply(t, webManifest)
	h.Apply(t, dnsManifest)
	h.Kubectl(t, "rollout", "status", "deployment/web", "--timeout="+podTimeout.String())
	h.Kubectl(t, "rollout", "status", "statefulset/db", "--timeout="+podTimeout.String())
	h.Kubectl(t, "wait", "--for=condition=Ready", "pod/named", "pod/box", "--timeout="+podTimeout.String())

	t.Run("names", func(t *testing.T) { testDNSNames(t, h) })
	t.Run("in a pod", func(t *testing.T) { testDNSInPod(t, h) })
	t.Run("what tools look for", func(t *testing.T) { testDNSObjects(t, h) })
	t.Run("custom", func(t *testing.T) { testDNSCustom(t, h) })
	t.Run("broken Corefile", func(t *testing.T) { testDNSBroken(t, h) })
	t.Run("garbage", func(t *testing.T) { testDNSGarbage(t, h) })
	t.Run("upstream", func(t *testing.T) { testDNSUpstream(t, h) })
	t.Run("loop", func(t *testing.T) { testDNSLoop(t, h) })
	t.Run("off and on", func(t *testing.T) { testDNSOffAndOn(t, s) })
}

// lookup sends one query and returns the answers' data in order, or the response code if it is not
// success.
func lookup(t *testing.T, h *cluster.Host, network, kind, name string) (string, error) {
	t.Helper()
	conn, err := h.Dial(t.Context(), network, clusterDNS)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	client := &dns.Client{Net: network, Timeout: 5 * time.Second}
	answer, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.StringToType[kind]), &dns.Conn{Conn: conn})
	if err != nil {
		return "", err
	}
	if answer.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[answer.Rcode], nil
	}
	var data []string
	for _, rr := range answer.Answer {
		data = append(data, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(data)
	return strings.Join(data, "; "), nil
}

// waitLookup waits for the wanted answer.
func waitLookup(t *testing.T, h *cluster.Host, kind, name, want string) {
	t.Helper()
	cluster.Wait(t, dnsTimeout, kind+" "+name, func() error {
		got, err := lookup(t, h, "udp", kind, name)
		if err == nil && got != want {
			err = fmt.Errorf("%s %s is %q, want %q", kind, name, got, want)
		}
		return err
	})
}

func testDNSNames(t *testing.T, h *cluster.Host) {
	features.Row(t, "D5", "records of every kind of Service and pod, by UDP and TCP")
	field := func(kind, name, path string) string {
		return h.Kubectl(t, "get", kind, name, "-o", "jsonpath={"+path+"}")
	}
	web := field("service", "web", ".spec.clusterIP")
	pod := func(name string) string { return field("pod", name, ".status.podIP") }
	db0, db1 := pod("db-0"), pod("db-1")
	both := []string{db0, db1}
	slices.Sort(both)
	reverse, err := dns.ReverseAddr(web)
	if err != nil {
		t.Fatal(err)
	}
	const domain = ".default.svc.cluster.local"
	for _, q := range []struct{ kind, name, want string }{
		{"A", "kubernetes" + domain, "10.43.0.1"},
		{"A", "web" + domain, web},
		{"AAAA", "web" + domain, ""},
		{"SRV", "_http._tcp.web" + domain, "0 100 80 web" + domain + "."},
		{"PTR", reverse, "web" + domain + "."},
		{"A", "db" + domain, strings.Join(both, "; ")},
		{"A", "db-0.db" + domain, db0},
		{"SRV", "_peer._tcp.db" + domain, "0 50 7000 db-0.db" + domain + ".; 0 50 7000 db-1.db" + domain + "."},
		{"A", "host.sub" + domain, pod("named")},
		{"CNAME", "outside" + domain, "www.example.test."},
		{"A", "1-2-3-4.default.pod.cluster.local", "1.2.3.4"},
		{"A", "nobody" + domain, "NXDOMAIN"},
		{"TXT", "dns-version.cluster.local", `"1.1.0"`},
		{"A", "www.example.test", "SERVFAIL"}, // at once: this machine has no other server
	} {
		waitLookup(t, h, q.kind, q.name, q.want)
	}
	if got, err := lookup(t, h, "tcp", "A", "web"+domain); got != web || err != nil {
		t.Errorf("over TCP the answer is %q, want %q: %v", got, web, err)
	}
}

func testDNSInPod(t *testing.T, h *cluster.Host) {
	features.Row(t, "D5", "short and long names from pods; the peers of a StatefulSet")
	wantContains(t, "a pod's resolv.conf", h.Kubectl(t, "exec", "box", "--", "cat", "/etc/resolv.conf"),
		"search default.svc.cluster.local svc.cluster.local cluster.local", "nameserver 10.43.0.10", "ndots:5")
	pod := webPod(t, h)
	fetch := func(from, page, want string) { // kube-proxy's rules may come later than the names
		h.WaitKubectl(t, dnsTimeout, func(out string) bool { return out == want+"\n" }, "exec", from, "--", "/program", "fetch", page)
	}
	for _, name := range []string{"web", "web.default", "web.default.svc", "web.default.svc.cluster.local"} {
		fetch(pod, "http://"+name, pod)
	}
	// The stable names of the stateful pods, which their peers use.
	fetch("db-1", "http://db-0.db:8080", "db-0")
}

func testDNSObjects(t *testing.T, h *cluster.Host) {
	wantContains(t, "cluster-info", h.Kubectl(t, "cluster-info"), "CoreDNS is running at")
	wantContains(t, "the Service", h.Kubectl(t, "get", "service", "-n", "kube-system", "-l", "k8s-app=kube-dns"), "kube-dns", "10.43.0.10")
	wantContains(t, "endpoints", h.Kubectl(t, "get", "endpoints", "-n", "kube-system", "kube-dns"), "10.42.0.1:10053")
	wantContains(t, "slices", h.Kubectl(t, "get", "endpointslices", "-n", "kube-system", "-l", "kubernetes.io/service-name=kube-dns", "-o", "name"), "kube-dns")
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: h.Dial}}
	metrics, err := get(client, "http://10.42.0.1:9153/metrics")
	if err != nil {
		t.Fatal(err)
	}
	wantContains(t, "metrics", metrics, "coredns_dns_requests_total", "go_goroutines", "process_open_fds")
	for line := range strings.Lines(metrics) { // pods reach the port, and series of other components have the names of all pods
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "), "_")
		if !slices.Contains([]string{"coredns", "go", "process"}, name) {
			t.Errorf("port 9153 shows a series of another component: %s", line)
		}
	}
}

// setConfigMap replaces a ConfigMap's only key.
func setConfigMap(t *testing.T, h *cluster.Host, name, key, text string) {
	t.Helper()
	file := h.Dir + "/" + key
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	made := h.Kubectl(t, "create", "configmap", "-n", "kube-system", name, "--from-file="+file, "--dry-run=client", "-o", "yaml")
	h.Apply(t, made)
}

func corefile(t *testing.T, h *cluster.Host) string {
	t.Helper()
	return h.Kubectl(t, "get", "configmap", "-n", "kube-system", "coredns", "-o", `jsonpath={.data.Corefile}`)
}

func testDNSCustom(t *testing.T, h *cluster.Host) {
	features.Row(t, "D5", "server blocks and overrides of the user")
	setConfigMap(t, h, "coredns-custom", "corp.server", "corp.test:53 {\n  hosts {\n    192.0.2.5 www.corp.test\n  }\n}\n")
	waitLookup(t, h, "A", "www.corp.test", "192.0.2.5")
	setConfigMap(t, h, "coredns-custom", "fix.override", "hosts {\n  192.0.2.6 fixed.test\n  fallthrough\n}\n")
	waitLookup(t, h, "A", "fixed.test", "192.0.2.6")
	waitLookup(t, h, "A", "www.corp.test", "SERVFAIL") // the block is gone
	h.Kubectl(t, "delete", "configmap", "-n", "kube-system", "coredns-custom")
	waitLookup(t, h, "A", "fixed.test", "SERVFAIL")
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
}

// waitEvent waits for an event on the ConfigMap coredns.
func waitEvent(t *testing.T, h *cluster.Host, reason, part string) {
	t.Helper()
	h.WaitKubectl(t, dnsTimeout, func(out string) bool { return strings.Contains(out, part) },
		"get", "events", "-n", "kube-system", "--field-selector", "involvedObject.name=coredns,reason="+reason, "-o", "jsonpath={.items[*].message}")
}

func testDNSBroken(t *testing.T, h *cluster.Host) {
	features.Row(t, "D5", "a broken Corefile keeps the last good one and an event names the line")
	good := corefile(t, h)
	setConfigMap(t, h, "coredns", "Corefile", strings.Replace(good, "    loop\n", "    nonsense\n", 1))
	waitEvent(t, h, "CorefileInvalid", "Corefile:12 - Error during parsing: Unknown directive 'nonsense'; the last good Corefile stays")
	waitTrouble(t, h, "dns: ConfigMap kube-system/coredns: Corefile:12", true)
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
	// First an error of a directive, then a Corefile that nothing in the cluster could query.
	setConfigMap(t, h, "coredns", "Corefile", strings.Replace(good, "ttl 30", "ttl many", 1))
	waitEvent(t, h, "CorefileInvalid", `parsing "many"`)
	setConfigMap(t, h, "coredns", "Corefile", strings.Replace(good, "errors", "bind 192.0.2.99", 1))
	waitEvent(t, h, "CorefileInvalid", "no server block answers on the cluster's DNS address")
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
	// After a deletion, the default comes back.
	h.Kubectl(t, "delete", "configmap", "-n", "kube-system", "coredns")
	cluster.Wait(t, dnsTimeout, "the default Corefile", func() error {
		r := h.Try(t, nil, "mote", "kubectl", "get", "configmap", "-n", "kube-system", "coredns", "-o", "jsonpath={.data.Corefile}")
		if r.Stdout != good {
			return fmt.Errorf("the Corefile is %q", r.Stdout)
		}
		return nil
	})
	waitTrouble(t, h, "dns: ConfigMap", false)
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
}

// testDNSGarbage sends packets that no client would send, and checks that the server still answers
// others.
func testDNSGarbage(t *testing.T, h *cluster.Host) {
	features.Row(t, "D5", "garbage and idle connections hold nobody up")
	question, err := new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		for cut := range question {
			conn, err := h.Dial(t.Context(), network, clusterDNS)
			if err != nil {
				t.Fatal(err)
			}
			mangled := append(slices.Clone(question[:cut]), 0xff, 0xc0, byte(cut))
			_, err = conn.Write(mangled)
			conn.Close()
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	// Idle connections must not delay anyone.
	var idle []net.Conn
	for range 200 {
		conn, err := h.Dial(t.Context(), "tcp", clusterDNS)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
	for _, conn := range idle {
		conn.Close()
	}
}

// testDNSUpstream gives the machine a resolver, as a network that comes up late does.
func testDNSUpstream(t *testing.T, h *cluster.Host) {
	features.Row(t, "D5", "an upstream that comes and goes")
	setConfigMap(t, h, "coredns-custom", "isp.server", ".:53 {\n  bind 127.0.0.2\n  hosts {\n    192.0.2.80 www.example.test\n  }\n}\n")
	setResolvConf(t, h, "nameserver 127.0.0.2\n")
	waitLookup(t, h, "A", "www.example.test", "192.0.2.80")
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
	setResolvConf(t, h, "")
	waitLookup(t, h, "A", "other.example.test", "SERVFAIL")
	h.Kubectl(t, "delete", "configmap", "-n", "kube-system", "coredns-custom")
}

// setResolvConf replaces the file, as network managers do.
func setResolvConf(t *testing.T, h *cluster.Host, text string) {
	t.Helper()
	h.Run(t, "sh", "-c", "printf %s '"+text+"' >/etc/resolv.conf.new && cat /etc/resolv.conf.new >/etc/resolv.conf && rm /etc/resolv.conf.new")
}

// testDNSLoop sends forwarded queries back to the cluster's DNS, as a stub resolver on the machine
// might.
func testDNSLoop(t *testing.T, h *cluster.Host) {
	features.Row(t, "D5", "a loop through a stub resolver is found and named")
	good := corefile(t, h)
	setConfigMap(t, h, "coredns-custom", "stub.server", ".:5300 {\n  bind 127.0.0.1\n  forward . 10.43.0.10\n}\n")
	setConfigMap(t, h, "coredns", "Corefile", strings.Replace(good, "/etc/resolv.conf", "127.0.0.1:5300", 1))
	waitEvent(t, h, "ForwardingLoop", "ask the cluster again")
	waitLookup(t, h, "A", "www.example.test", "SERVFAIL")
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
	setConfigMap(t, h, "coredns", "Corefile", good)
	h.Kubectl(t, "delete", "configmap", "-n", "kube-system", "coredns-custom")
}

func testDNSOffAndOn(t *testing.T, s *cluster.Server) {
	features.Row(t, "D5", "DNS switched off leaves nothing, and comes back")
	h := s.Host
	restart := func(args ...string) {
		h.Run(t, "mote", "stop")
		s.WaitEnd(t, cluster.StopTimeout)
		s = h.StartServer(t, args...)
		s.WaitReady(t)
	}
	objects := func() string {
		return h.Kubectl(t, "get", "service,endpoints,endpointslice,configmap,serviceaccount,clusterrole,clusterrolebinding", "-A",
			"-l", "app.kubernetes.io/managed-by=mote,k8s-app=kube-dns", "-o", "name")
	}
	before := objects()
	h.Kubectl(t, "delete", "configmap", "-n", "kube-system", "coredns") // edited above, so it belongs to the user
	restart("--disable=dns")
	cluster.Wait(t, dnsTimeout, "nothing of DNS", func() error {
		if left := objects(); left != "" {
			return fmt.Errorf("left: %s", left)
		}
		return nil
	})
	restart()
	cluster.Wait(t, dnsTimeout, "DNS to be back", func() error {
		if after := objects(); after != before {
			return fmt.Errorf("before %s, after %s", before, after)
		}
		return nil
	})
	waitLookup(t, h, "A", "kubernetes.default.svc.cluster.local", "10.43.0.1")
}
