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

// runTimeout is for a `mote run` with a short command, start and end included, among two others.
const runTimeout = 3 * time.Minute

// TestRunEndings lets three throwaway clusters at once end in each way, and finds nothing of them.
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
			// After SIGKILL the kernel takes down what the dead process held; that is not at once.
			cluster.Wait(t, runTimeout, "nothing to be left", func() error {
				if diff := cluster.Diff(before, h.State(t)); diff != "" {
					return errors.New("left on the host:\n" + diff)
				}
				return nil
			})
		})
	}
}

// runOnce runs one cluster, signals it once the command says "mark", and compares the exit code.
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
	// Its error is the exit code that is looked at here.
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != want {
		return fmt.Errorf("mote run -- sh -c %q: exit code %d, want %d\n%s%s", command, got, want, &stdout, &stderr)
	}
	return nil
}

// TestRun uses one throwaway cluster as a CI job would: an image of its own, a published port,
// the API from outside.
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
		echo serving
		read -r _`
	cmd := exec.Command("mote", "run", "-q", "--image", archive, "-p", "18080:30080", "--", "sh", "-c", script)
	cmd.Env, cmd.Stderr = h.Environ(), os.Stderr
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
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	// The script's read meets the end of its input and fails.
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 1 {
		t.Errorf("exit code %d, want the command's, 1", got)
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
