package conformance

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/conformance/report"
)

const (
	// quiet is the time in which the process must give back the resources that it took for the
	// specs: the garbage collector runs at least every two minutes.
	quiet = 3 * time.Minute
	// drained is the time in which the last namespaces must end.
	drained = 10 * time.Minute
	sampled = 5 * time.Second
)

// idleUsage waits until the cluster is empty and returns the lowest usage of a quiet period. It
// writes profiles of heap and goroutines to files whose names begin with prefix.
func idleUsage(t *testing.T, s *cluster.Server, prefix string) report.Usage {
	t.Helper()
	cluster.Wait(t, drained, "the specs' namespaces to end", func() error {
		names := strings.Fields(s.Host.Kubectl(t, "get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}"))
		for _, name := range names {
			if name != "default" && !strings.HasPrefix(name, "kube-") {
				return fmt.Errorf("namespace %s is there", name)
			}
		}
		return nil
	})
	least := usage(t, s)
	tick := time.NewTicker(sampled)
	defer tick.Stop()
	for deadline := time.After(quiet); ; {
		select {
		case <-tick.C:
			if now := usage(t, s); now.AnonymousMB < least.AnonymousMB {
				least = now
			}
			continue
		case <-deadline:
		}
		break
	}
	heap, goroutines := profile(t, s, "heap?gc=1"), profile(t, s, "goroutine?debug=1")
	if err := errors.Join(os.WriteFile(prefix+"heap.pprof", []byte(heap), 0o644),
		os.WriteFile(prefix+"goroutines.txt", []byte(goroutines), 0o644)); err != nil {
		t.Fatal(err)
	}
	least.Goroutines = number(t, goroutines, `(?m)^goroutine profile: total (\d+)$`)
	least.HeapMB = number(t, profile(t, s, "heap?gc=1&debug=1"), `(?m)^# HeapAlloc = (\d+)$`) / 1e6
	return least
}

// profile reads a profile of the process from the status socket.
func profile(t *testing.T, s *cluster.Server, path string) string {
	t.Helper()
	return s.Host.Run(t, "curl", "-sf", "--unix-socket", "/run/mote/sockets/mote.sock", "http://mote/debug/pprof/"+path)
}

// usage returns the resource usage of the process as the kernel reports it.
func usage(t *testing.T, s *cluster.Server) report.Usage {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	descriptors, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return report.Usage{
		AnonymousMB: number(t, string(status), `(?m)^RssAnon:\s+(\d+) kB$`) / 1000,
		Descriptors: len(descriptors),
	}
}

// number returns the number that an expression finds in a text.
func number(t *testing.T, text, expression string) int {
	t.Helper()
	m := regexp.MustCompile(expression).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("nothing like %s in %.200q", expression, text)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func countLog(t *testing.T, path string) report.Log {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	counted, err := report.ReadLog(file)
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
	return counted
}

// settings reads the settings of a run from the running cluster.
func settings(t *testing.T, h *cluster.Host) report.Settings {
	t.Helper()
	cgroup := "v1"
	if _, err := os.Stat(h.Path("/sys/fs/cgroup/cgroup.controllers")); err == nil {
		cgroup = "v2"
	}
	node := strings.Fields(h.Kubectl(t, "get", "node", "-o", "jsonpath={.items[0].status.nodeInfo.kubeletVersion} {.items[0].status.nodeInfo.kernelVersion}"))
	return report.Settings{
		Kubernetes: node[0], Kernel: node[1],
		Mote:   strings.Fields(h.Run(t, "mote", "version"))[1],
		Proxy:  strings.TrimSpace(h.Run(t, "curl", "-s", "http://127.0.0.1:10249/proxyMode")),
		Cgroup: cgroup,
		Data:   strings.TrimSpace(h.Run(t, "sh", "-c", "findmnt -n -o FSTYPE -T /var/lib/mote | tail -n 1")), // the uppermost
	}
}
