package e2e

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/mote-k8s/mote/test/cis"
	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

// hogRoom is the memory in bytes that the pods of TestHardened get: enough for them, and little for
// a hog to fill.
const hogRoom = 1 << 30

// TestHardened runs a server with --profile=cis. It checks each control that passes according to
// docs/explanation/security.md, mote's own components under the profile, and pods that take all the
// resources that they can get.
func TestHardened(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{Name: "hardened"})
	h.Preload(t, busybox(t), program(t, images.WebName, "./test/images/web"))
	s := h.StartServer(t, "--profile=cis", fmt.Sprintf(`--kubelet-arg=systemReserved={"memory":"%d"}`, machineMemory(t)-hogRoom),
		"--kubelet-arg=podPidsLimit=200")
	s.WaitReady(t)
	startWeb(t, h)

	t.Run("controls", func(t *testing.T) {
		features.Row(t, "F7", "with --profile=cis: each control of the CIS benchmark that the page says passes")
		checkCIS(t, h, cis.Default, cis.Profile)
	})
	t.Run("check net", func(t *testing.T) {
		features.Row(t, "F7", "with --profile=cis: mote check net, addons")
		h.Run(t, "mote", "check", "net")
		wantContains(t, "mote status", h.Run(t, "mote", "status"), "ready")
	})
	t.Run("fork bomb", func(t *testing.T) { testForkBomb(t, h, s) })
	t.Run("memory hog", func(t *testing.T) { testMemoryHog(t, h, s) })
}

// testHardening checks a server with default settings.
func testHardening(t *testing.T, h *cluster.Host) {
	features.Row(t, "F7", "by default: each control of the CIS benchmark that the page says passes; no port takes weak ciphers")
	checkCIS(t, h, cis.Default)
	s := &cisServer{h: h}
	for _, port := range []string{"10251", "10257", "10259"} {
		cisCiphers(t, s, port)
	}
}

func machineMemory(t *testing.T) int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	if _, err := fmt.Sscanf(string(data), "MemTotal: %d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// testForkBomb checks that a fork bomb fills its pod's limit, that other pods are not affected, and
// that the bomb can be deleted.
func testForkBomb(t *testing.T, h *cluster.Host, s *cluster.Server) {
	features.Row(t, "F7", "a fork bomb in a pod ends at the pod's limit; the API, other pods and exec go on, and the pod is deleted")
	h.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: bomb}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: bomb
    image: localhost/test/busybox:1
    # A shell ends when it cannot fork. The outer one has the room of the inner one then.
    command: [sh, -c, "while :; do sh -c 'while :; do sleep 1000000 & done'; done"]
`)
	asked := &cisServer{h: h}
	h.WaitKubectl(t, podTimeout, func(out string) bool { return out == "Running" || out == "Failed" },
		"get", "pod", "bomb", "-o", "jsonpath={.status.phase}")
	cluster.Wait(t, podTimeout, "the bomb to meet its limit", func() error {
		processes := number(t, asked.podGroupFile(t, "bomb", "pids", "pids.current"))
		// The shells of the bomb end when the kernel refuses a fork, so a few are missing at any
		// time.
		if limit := number(t, asked.podGroupFile(t, "bomb", "pids", "pids.max")); processes < limit*9/10 {
			return fmt.Errorf("it has %d of %d processes", processes, limit)
		}
		return nil
	})
	wantAlive(t, h, s)
	h.Kubectl(t, "delete", "pod", "bomb", "--timeout="+podTimeout.String())
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatalf("not a number: %v", err)
	}
	return n
}

// testMemoryHog checks that a pod without limits is killed, and that mote is not.
func testMemoryHog(t *testing.T, h *cluster.Host, s *cluster.Server) {
	features.Row(t, "F7", "a pod without limits that takes all memory is killed; mote, the API and other pods go on")
	h.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: hog
    image: localhost/test/busybox:1
    command: [tail, /dev/zero] # keeps the last line, which does not end
`)
	cluster.Wait(t, 2*podTimeout, "the hog to be killed", func() error {
		got := h.Kubectl(t, "get", "pod", "hog", "-o", "jsonpath={.status.phase} {.status.reason} {.status.containerStatuses[0].state.terminated.reason}")
		if !strings.HasPrefix(got, "Failed ") {
			return errors.New("it is " + got)
		}
		// The kernel kills it when the pods' memory is full, or the kubelet just before that.
		if !strings.Contains(got, "OOMKilled") && !strings.Contains(got, "Evicted") {
			t.Fatalf("the hog ended otherwise: %s", got)
		}
		return nil
	})
	wantAlive(t, h, s)
	h.Kubectl(t, "delete", "pod", "hog", "--timeout="+podTimeout.String())
}

// wantAlive checks that the same process still serves, with its pods untouched.
func wantAlive(t *testing.T, h *cluster.Host, s *cluster.Server) {
	t.Helper()
	if r := h.Try(t, nil, "mote", "kubectl", "exec", "box", "--", "echo", "alive"); r.Stdout != "alive\n" {
		t.Errorf("exec in another pod: %+v", r)
	}
	if got := h.Kubectl(t, "get", "pod", "box", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("the other pod was restarted %s times", got)
	}
	if got := h.Kubectl(t, "get", "--raw", "/readyz"); got != "ok" {
		t.Errorf("readyz: %s", got)
	}
	if err := s.Alive(); err != nil {
		t.Error(err)
	}
}
