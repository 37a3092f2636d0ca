package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// runTimeout is for a `mote run` with a short command, start and end included, beside two others.
const runTimeout = 3 * time.Minute

// TestRunEndings ends three throwaway clusters at once in each way, and checks that nothing of them
// is left.
func TestRunEndings(t *testing.T) {
	features.Row(t, "A23", "three throwaway clusters at once end in every way and leave nothing")
	h := cluster.NewHost(t, cluster.HostConfig{})
	before := h.State(t)
	for _, ending := range []struct {
		name    string
		command string // sh -c; "mark" is printed when the cluster is up
		signal  syscall.Signal
		code    int // what is expected; -1: ended by the signal
	}{
		{"the command succeeds", "kubectl get nodes", 0, 0},
		{"the command fails", "kubectl get nodes && exit 42", 0, 42},
		{"SIGINT", "echo mark; exec sleep 1000", syscall.SIGINT, 130},
		{"SIGTERM", "echo mark; exec sleep 1000", syscall.SIGTERM, 143},
		{"SIGKILL", "echo mark; exec sleep 1000", syscall.SIGKILL, -1},
	} {
		t.Run(ending.name, func(t *testing.T) {
			var group sync.WaitGroup
			for range 3 {
				group.Go(func() {
					if err := runOnce(h, ending.command, ending.signal, ending.code); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			// After SIGKILL the kernel releases the resources of the dead process, but not at once.
			cluster.Wait(t, runTimeout, "nothing to be left", func() error {
				if diff := cluster.Diff(before, h.State(t)); diff != "" {
					return errors.New("left on the host:\n" + diff)
				}
				return nil
			})
		})
	}
}

// runOnce runs one cluster, signals it once the command prints "mark", and compares the exit code.
func runOnce(h *cluster.Host, command string, signal syscall.Signal, want int) error {
	cmd := exec.Command("mote", "run", "--", "sh", "-c", command)
	cmd.Env = h.Environ()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.Start(cmd); err != nil {
		return err
	}
	giveUp := time.AfterFunc(runTimeout, func() { _ = cmd.Process.Kill() })
	defer giveUp.Stop()
	lines := bufio.NewScanner(out)
	var stdout strings.Builder
	for lines.Scan() {
		fmt.Fprintln(&stdout, lines.Text())
		if lines.Text() == "mark" {
			if err := cmd.Process.Signal(signal); err != nil {
				return err
			}
		}
	}
	// The error has the exit code, which is checked below.
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != want {
		return fmt.Errorf("mote run -- sh -c %q: exit code %d, want %d\n%s%s", command, got, want, &stdout, &stderr)
	}
	return nil
}

// TestRun uses one throwaway cluster as a CI job would: an image of its own, a published port, the
// API from outside.
func TestRun(t *testing.T) {
	features.Row(t, "A23", "a throwaway cluster with an image of its own and a published port")
	h := cluster.NewHost(t, cluster.HostConfig{})
	archive := filepath.Join(h.Dir, "web.tar.zst")
	if err := program(t, "localhost/test/web:1", "./test/images/web").Save(archive); err != nil {
		t.Fatal(err)
	}
	script := `set -e
		test -f "$KUBECONFIG"
		kubectl get nodes >&2
		kubectl create deployment web --image=localhost/test/web:1
		kubectl create service nodeport web --tcp=80:8080 --node-port=30080
		kubectl rollout status deployment/web --timeout=60s
		kubectl run broken --image=localhost/test/none:1 --image-pull-policy=Never
		kubectl create secret generic hidden --from-literal=password=swordfish
		echo serving
		read -r _`
	artifacts := filepath.Join(h.Dir, "out")
	cmd := exec.Command("mote", "run", "-q", "--profile=cis", "--name", "ci", "--artifacts", artifacts, "--image", archive, "-p", "18080:30080", "--", "sh", "-c", script)
	var stderr strings.Builder
	cmd.Env, cmd.Stderr = h.Environ(), &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	giveUp := time.AfterFunc(runTimeout, func() { _ = cmd.Process.Kill() })
	defer giveUp.Stop()
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "serving"; {
		t.Log(lines.Text())
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
	cluster.Wait(t, podTimeout, "the published port", func() error {
		resp, err := client.Get("http://127.0.0.1:18080/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || !strings.HasPrefix(string(body), "web-") {
			return fmt.Errorf("it answers %q: %v", body, err)
		}
		return nil
	})
	testOtherTerminal(t, h)
	testRunProfile(t, h)
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	// The script's read reaches the end of its input and fails.
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 1 {
		t.Errorf("exit code %d, want the command's, 1", got)
	}
	t.Log(stderr.String())
	wantAftermath(t, stderr.String(), artifacts)
	if out := h.Run(t, "mote", "run", "--list", "-q"); out != "" {
		t.Errorf("run --list shows a cluster that has ended: %s", out)
	}
}

// testOtherTerminal uses the throwaway cluster ci as a user in another terminal does.
func testOtherTerminal(t *testing.T, h *cluster.Host) {
	t.Helper()
	features.Row(t, "A23", "status, logs, image, kubectl and ctr find a throwaway cluster by its name, and the only one without it")
	wantContains(t, "run --list", h.Run(t, "mote", "run", "--list"), "NAME", "ci     true")
	h.WaitKubectl(t, podTimeout, func(out string) bool { return strings.Contains(out, "ErrImageNeverPull") }, "--sandbox", "ci", "get", "pods")
	wantContains(t, "status --sandbox", h.Run(t, "mote", "status", "--sandbox", "ci"), "kubelet ", "node mote")
	wantContains(t, "status of the only cluster", h.Run(t, "mote", "status"), "kubelet ", "node mote")
	wantContains(t, "logs --sandbox", h.Run(t, "mote", "logs", "--sandbox=ci", "-c", "mote"), "node is ready")
	wantContains(t, "image list --sandbox", h.Run(t, "mote", "image", "list", "--sandbox", "ci"), "localhost/test/web:1")
	wantContains(t, "ctr --sandbox", h.Run(t, "mote", "ctr", "--sandbox", "ci", "images", "list", "-q"), "localhost/test/web:1")
	if r := h.Try(t, nil, "mote", "run", "--name", "ci", "--", "true"); r.Code != 1 || !strings.Contains(r.Stderr, "a sandbox called ci runs already") {
		t.Errorf("a second cluster of one name: %+v", r)
	}
}

// testRunProfile checks that --profile=cis applies to both halves of the throwaway cluster ci, the
// API server and the kubelet.
func testRunProfile(t *testing.T, h *cluster.Host) {
	t.Helper()
	features.Row(t, "F7", "mote run --profile=cis refuses a privileged pod and gives containers a seccomp profile")
	r := h.Try(t, nil, "mote", "kubectl", "--sandbox", "ci", "run", "privileged", "--image=localhost/test/web:1", "--privileged")
	if r.Code == 0 || !strings.Contains(r.Stderr, `violates PodSecurity "baseline`) {
		t.Errorf("a privileged pod under --profile=cis: %+v", r)
	}
	wantContains(t, "the kubelet's settings", h.Run(t, "mote", "kubectl", "--sandbox", "ci", "get", "--raw", "/api/v1/nodes/mote/proxy/configz"), `"seccompDefault":true`)
}

// wantAftermath checks the messages and artifacts of a command that failed.
func wantAftermath(t *testing.T, stderr, artifacts string) {
	t.Helper()
	features.Row(t, "A23", "a failed command leaves the pods that are not Ready, events, and artifacts without secrets")
	wantContains(t, "stderr", stderr, "Pods that are not Ready (1):", "ErrImageNeverPull", "Warning events")
	for path, want := range map[string]string{
		"objects/default/pods.yaml":             "name: broken",
		"objects/default/secrets.yaml":          "password: REDACTED",
		"objects/_cluster/nodes.yaml":           "kind: Node",
		"objects/default/deployments.apps.yaml": "name: web",
		"events.txt":                            "ErrImageNeverPull",
		"mote.log":                              "node is ready",
	} {
		content, err := os.ReadFile(filepath.Join(artifacts, path))
		if err != nil {
			t.Error(err)
			continue
		}
		wantContains(t, path, string(content), want)
	}
	if logs, err := filepath.Glob(filepath.Join(artifacts, "logs/default/web-*/*.log")); err != nil || len(logs) != 1 {
		t.Errorf("logs of the web pod: %v, %v", logs, err)
	}
}

// TestRunTime prints how long the shortest useful cluster takes. scripts/bench measures it.
func TestRunTime(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	start := time.Now()
	out := h.Run(t, "mote", "run", "-q", "--", "kubectl", "get", "nodes")
	t.Logf("mote run -- kubectl get nodes: %.1f s\n%s", time.Since(start).Seconds(), out)
	wantContains(t, "kubectl get nodes", out, " Ready ")
}
