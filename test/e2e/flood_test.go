package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// flood is the number of connections that a pod tries to hold on each port.
const flood = 2000

// testIdleConnections holds idle connections from a pod without credentials, while all others must
// work: kubectl, exec through the kubelet, and another pod.
func testIdleConnections(t *testing.T, h *cluster.Host) {
	features.Row(t, "F3", "a pod's idle connections to the API and the kubelet are refused over its share, and nobody else notices")
	attacker, neighbour := containerPID(t, h, "box"), containerPID(t, h, webPod(t, h))
	var held []net.Conn
	defer func() {
		for _, conn := range held {
			conn.Close()
		}
	}()
	for port, most := range map[string]int{"6443": 1024, "10250": 256, "10256": 32} {
		address := net.JoinHostPort(nodeIP, port)
		err := h.InNetworkOf(attacker, func() error {
			for range flood {
				conn, err := net.DialTimeout("tcp", address, 10*time.Second)
				if err != nil && !errors.Is(err, syscall.ECONNRESET) {
					return err
				}
				if err == nil {
					held = append(held, conn)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatalf("connect to %s: %v", address, err)
		}
		// For a moment this also counts connections that the kernel has accepted and mote has not
		// checked yet.
		cluster.Wait(t, podTimeout, "connections over the budget to be refused", func() error {
			open := strings.Count(h.Run(t, "ss", "-tnH", "state", "established", "src", address), "\n")
			if open > most+10 { // kubectl, probes
				return fmt.Errorf("%d connections to %s are open, want at most %d", open, address, most)
			}
			return nil
		})
	}
	if got := strings.TrimSpace(h.Kubectl(t, "get", "--raw", "/readyz")); got != "ok" {
		t.Errorf("readyz says %q", got)
	}
	if got := strings.TrimSpace(h.Kubectl(t, "exec", "box", "--", "echo", "hello")); got != "hello" {
		t.Errorf("exec answers %q", got)
	}
	for _, port := range []string{"6443", "10250", "10256"} {
		err := h.InNetworkOf(neighbour, func() error {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(nodeIP, port), 10*time.Second)
			if err != nil {
				return err
			}
			defer conn.Close()
			// A refused connection is reset at once; an accepted one is read until the deadline.
			_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				return fmt.Errorf("it ends: %w", err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("another pod on port %s: %v", port, err)
		}
	}
	wantContains(t, "mote status", h.Run(t, "mote", "status"),
		"kube-apiserver: [::]:6443: connections refused", "kubelet: 10.42.0.1:10250: connections refused", "kube-proxy: 10.42.0.1:10256: connections refused")
	for _, conn := range held {
		conn.Close()
	}
	held = nil
	h.WaitKubectl(t, podTimeout, func(out string) bool {
		return strings.Contains(out, `mote_listener_connections{class="stranger",listener="kubelet"} 0`) &&
			strings.Contains(out, `mote_listener_refused_total{listener="kubelet",reason="address"}`)
	}, "get", "--raw", "/metrics")
}

// containerPID returns the process ID on the host of a pod's first container.
func containerPID(t *testing.T, h *cluster.Host, pod string) string {
	t.Helper()
	id := h.Kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	for line := range strings.Lines(h.Run(t, "mote", "ctr", "-n", "k8s.io", "tasks", "list")) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == strings.TrimPrefix(id, "containerd://") {
			return f[1]
		}
	}
	t.Fatalf("pod %s has no process", pod)
	return ""
}

// testOwnMetrics reads the one metrics port that needs no credentials and belongs to kube-proxy.
func testOwnMetrics(t *testing.T, h *cluster.Host) {
	features.Row(t, "G8", "kube-proxy's port shows its own metrics and no configuration")
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
	body, err := get(client, "http://127.0.0.1:10249/metrics")
	if err != nil {
		t.Fatal(err)
	}
	wantContains(t, "kube-proxy's metrics", body, "\nkubeproxy_sync_proxy_rules_duration_seconds_count", "\ngo_goroutines ", "\nprocess_open_fds ")
	for line := range strings.Lines(body) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if !strings.HasPrefix(name, "kubeproxy_") && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("the port shows %q", line)
			break
		}
	}
	for path, want := range map[string]int{"/configz": http.StatusNotFound, "/proxyMode": http.StatusOK, "/healthz": http.StatusOK} {
		response, err := client.Get("http://127.0.0.1:10249" + path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s answers %d, want %d", path, response.StatusCode, want)
		}
	}
}
