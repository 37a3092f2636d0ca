package e2e

import (
	"bufio"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// TestLook reads the status of an empty server in all the ways that a user has.
func TestLook(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{Name: "e2e"})
	s := h.StartServer(t)
	s.WaitReady(t)
	for _, part := range []struct {
		name string
		test func(*testing.T, *cluster.Host)
	}{
		{"network", testCheckNet},
		{"broken network", testCheckNetBroken},
		{"logs", testLogs},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, h) })
	}
	t.Run("another life", func(t *testing.T) { testLookAgain(t, s) })
}

// testLookAgain stops the server, reads the status, and starts one without DNS and kube-proxy.
func testLookAgain(t *testing.T, s *cluster.Server) {
	h := s.Host
	h.Run(t, "mote", "stop")
	s.WaitEnd(t, cluster.StopTimeout)
	features.Row(t, "G7", "logs of a server that has ended")
	wantContains(t, "the log", h.Run(t, "mote", "logs", "-c", "mote"), `msg="API is ready"`)
	h.StartServer(t, "--disable=dns", "--proxy=none").WaitReady(t)
	features.Row(t, "D11", "check net says what it skips without DNS and kube-proxy, and why")
	checkNet(t, h, 0, "pod to pod +ok", "pod to Service +skip +--proxy=none: ", "pod to apiserver +skip +--proxy=none: ",
		"DNS from pod +skip +--(disable=dns|proxy=none)")
}

// checkNet runs `mote check net` and requires each of the lines.
func checkNet(t *testing.T, h *cluster.Host, code int, lines ...string) {
	t.Helper()
	r := h.Try(t, nil, "mote", "check", "net")
	if r.Code != code {
		t.Errorf("check net: exit code %d, want %d: %s", r.Code, code, r.Stderr)
	}
	for _, line := range lines {
		if !regexp.MustCompile("(?m)^" + line).MatchString(r.Stdout) {
			t.Errorf("check net has no line %q", line)
		}
	}
	t.Logf("check net:\n%s%s", r.Stdout, r.Stderr)
}

func testCheckNet(t *testing.T, h *cluster.Host) {
	features.Row(t, "D11", "check net finds every way open under policies that forbid all, and leaves nothing behind")
	h.Apply(t, `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
`)
	checkNet(t, h, 0,
		"forwarding +ok", "bridge +ok", "packet-rules +ok", "mtu +ok", "api +ok", "pods +ok",
		"node to pod +ok", "pod to pod +ok", "node to Service +ok", "pod to Service +ok", "pod to itself by Service +ok",
		"node to NodePort +ok", "pod to NodePort +ok", "pod to apiserver +ok", "DNS from node +ok", "DNS from pod +ok",
		"DNS upstream +warn .*/etc/resolv.conf")
	if left := h.Kubectl(t, "get", "namespaces,pods,services", "-A", "-o", "name"); regexp.MustCompile("check").MatchString(left) {
		t.Errorf("check net left\n%s", left)
	}
}

func testCheckNetBroken(t *testing.T, h *cluster.Host) {
	features.Row(t, "D11", "check net names forwarding that is off, rules that are gone, and a firewall between pods; a killed one is cleaned up")
	killed := exec.Command("mote", "check", "net")
	killed.Env = h.Environ()
	if err := h.Start(killed); err != nil {
		t.Fatal(err)
	}
	h.WaitKubectl(t, podTimeout, func(out string) bool { return strings.Contains(out, "pod/client") },
		"get", "pods", "-n", "mote-check-net", "-o", "name")
	_ = killed.Process.Kill()
	_ = killed.Wait()
	h.Run(t, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward && nft delete table ip mote")
	h.Run(t, "nft", "add table ip strange; add chain ip strange in { type filter hook input priority -10; }; "+
		"add rule ip strange in iifname mote0 udp dport 10053 drop")
	checkNet(t, h, 1,
		"forwarding +fail +net.ipv4.ip_forward is off.*run sysctl", "packet-rules +fail +nftables table ip mote .*start mote again",
		"DNS from node +ok", "DNS from pod +fail .*10.43.0.10 by udp.*i/o timeout; see")
	h.Run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; nft delete table ip strange")
}

func testLogs(t *testing.T, h *cluster.Host) {
	features.Row(t, "G7", "logs of one component, by level and age, and those to come; unknown names are told the known ones")
	out := h.Run(t, "mote", "logs", "--component", "scheduler")
	wantContains(t, "the scheduler's log", out, "level=INFO msg=ready component=kube-scheduler after=")
	for line := range strings.Lines(out) {
		if !strings.Contains(line, " component=kube-scheduler") {
			t.Errorf("the scheduler's log holds %q", line)
		}
	}
	wantContains(t, "the log", h.Run(t, "mote", "logs"), "component=kubelet", "component=dns", "component=kube-apiserver")
	wantContains(t, "the log in JSON", h.Run(t, "mote", "logs", "-c", "kubelet", "-o", "json"), `"msg":"ready","component":"kubelet"`)
	if out := h.Run(t, "mote", "logs", "--component", "scheduler", "--since", "1ms"); out != "" {
		t.Errorf("logs of the last millisecond: %s", out)
	}
	if out := h.Run(t, "mote", "logs", "--component", "scheduler", "--level", "error"); out != "" {
		t.Errorf("errors of the scheduler: %s", out)
	}
	r := h.Try(t, nil, "mote", "logs", "--component", "shceduler")
	if wantContains(t, "the error", r.Stderr, "shceduler", "kube-scheduler, kubelet", "loadbalancer"); r.Code != 1 {
		t.Errorf("logs of an unknown component: exit code %d", r.Code)
	}
	if out := h.Run(t, "stat", "-c", "%a %n", "/run/mote/log", "/run/mote/log/mote.log"); out != "700 /run/mote/log\n600 /run/mote/log/mote.log\n" {
		t.Errorf("modes of the log: %s", out)
	}
	t.Logf("the log of a server that has started takes %s", h.Run(t, "du", "-b", "/run/mote/log"))

	follow := exec.Command("mote", "logs", "--follow", "--component", "dns", "--level", "warn")
	follow.Env = h.Environ()
	stdout, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(follow); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = follow.Process.Kill()
		_ = follow.Wait()
	}()
	giveUp := time.AfterFunc(podTimeout, func() { _ = follow.Process.Kill() })
	defer giveUp.Stop()
	h.Kubectl(t, "patch", "configmap", "coredns", "-n", "kube-system", "-p", `{"data":{"Corefile":"nonsense {"}}`)
	if lines := bufio.NewScanner(stdout); !lines.Scan() || !strings.Contains(lines.Text(), "component=dns") {
		t.Errorf("logs --follow shows %q", lines.Text())
	}
}
