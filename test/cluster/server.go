package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mote-k8s/mote/test/images"
)

const (
	// ReadyTimeout is the time in which the node of a server must be Ready: 3 s alone on an idle
	// machine, but the tests share two cores with their own builds.
	ReadyTimeout = 2 * time.Minute
	// StopTimeout is the time in which a server must end after SIGTERM.
	StopTimeout = time.Minute
	// Kubeconfig is the path of the admin kubeconfig in a host.
	Kubeconfig = "/var/lib/mote/kubeconfig"

	logTail = 12_000 // bytes of a server's log that a failed test prints
)

// Server is one `mote server` process in a host.
type Server struct {
	Host    *Host
	LogPath string
	cmd     *exec.Cmd
	started time.Time
	ended   chan struct{} // closed when the process is gone
	client  atomic.Pointer[kubernetes.Clientset]
}

// StartServer starts `mote server` with further arguments. It does not wait for anything.
func (h *Host) StartServer(t testing.TB, args ...string) *Server {
	t.Helper()
	log, err := os.CreateTemp(h.Dir, "mote-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("mote", append([]string{"server"}, args...)...)
	cmd.Env, cmd.Stdout, cmd.Stderr = h.Environ(), log, log
	s := &Server{Host: h, LogPath: log.Name(), cmd: cmd, started: time.Now(), ended: make(chan struct{})}
	if err := h.Start(cmd); err != nil {
		t.Fatalf("start mote server: %v", err)
	}
	go func() {
		defer close(s.ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("end of %s:\n%s", filepath.Base(s.LogPath), s.Log(t))
		}
	})
	return s
}

// PID returns the process ID of the server on the machine.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log returns the end of the server's log.
func (s *Server) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(s.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > logTail {
		b = b[bytes.IndexByte(b[len(b)-logTail:], '\n')+len(b)-logTail+1:]
	}
	return string(b)
}

// Kill sends SIGKILL and returns when the process is gone. It does nothing if the server has ended.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// Signal sends a signal and returns the exit code once the process is gone.
func (s *Server) Signal(t testing.TB, sig syscall.Signal) int {
	t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("send %v to mote server: %v", sig, err)
	}
	return s.WaitEnd(t, StopTimeout)
}

// Alive returns an error when the process has ended.
func (s *Server) Alive() error {
	select {
	case <-s.ended:
		return fmt.Errorf("mote server has ended with exit code %d", s.cmd.ProcessState.ExitCode())
	default:
		return nil
	}
}

// WaitEnd waits until the process is gone and returns its exit code.
func (s *Server) WaitEnd(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-s.ended:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(timeout):
		t.Fatalf("mote server did not end within %v", timeout)
		return -1
	}
}

// WaitReady waits until this process serves the API and its kubelet has reported Ready.
func (s *Server) WaitReady(t testing.TB) {
	t.Helper()
	Wait(t, ReadyTimeout, "node Ready", func() error {
		select {
		case <-s.ended:
			t.Fatalf("mote server ended with exit code %d before its node was Ready", s.cmd.ProcessState.ExitCode())
		default:
		}
		return s.ready(t.Context())
	})
}

// ready distinguishes a live node from one that was Ready before the server was restarted: the
// node's lease must have been renewed since.
func (s *Server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := s.Client()
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	if len(nodes.Items) != 1 {
		return fmt.Errorf("%d nodes, want 1", len(nodes.Items))
	}
	node := nodes.Items[0]
	ready := slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	if !ready {
		return fmt.Errorf("node %s is not Ready: %v", node.Name, node.Status.Conditions)
	}
	lease, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(ctx, node.Name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if lease.Spec.RenewTime == nil || lease.Spec.RenewTime.Time.Before(s.started) {
		return fmt.Errorf("node %s has not renewed its lease", node.Name)
	}
	return nil
}

// Client returns a client with administrator rights that connects from inside the host.
func (s *Server) Client() (*kubernetes.Clientset, error) {
	if c := s.client.Load(); c != nil {
		return c, nil
	}
	config, err := s.Host.RestConfig()
	if err != nil {
		return nil, err
	}
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	s.client.Store(c)
	return c, nil
}

// RestConfig returns the admin kubeconfig for a client in the test process.
func (h *Host) RestConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", h.Path(Kubeconfig))
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.Dial = h.Dial
	// The client must not limit the rate of the tests' requests.
	config.QPS = -1
	return config, nil
}

// Kubectl runs `mote kubectl` and returns its stdout. The test fails if the command fails.
func (h *Host) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return h.Run(t, append([]string{"mote", "kubectl"}, args...)...)
}

// Apply creates or updates the objects of a YAML document.
func (h *Host) Apply(t testing.TB, manifest string) {
	t.Helper()
	r := h.Try(t, strings.NewReader(manifest), "mote", "kubectl", "apply", "-f", "-")
	if r.Code != 0 {
		t.Fatalf("kubectl apply: exit code %d\n%s", r.Code, r.Stderr)
	}
}

// WaitKubectl waits until accept returns true for the output of `mote kubectl ARGS`.
func (h *Host) WaitKubectl(t testing.TB, timeout time.Duration, accept func(out string) bool, args ...string) {
	t.Helper()
	Wait(t, timeout, "kubectl "+strings.Join(args, " "), func() error {
		r := h.Try(t, nil, append([]string{"mote", "kubectl"}, args...)...)
		if r.Code != 0 {
			return errors.New(r.Stderr)
		}
		if !accept(r.Stdout) {
			return fmt.Errorf("it printed %q", r.Stdout)
		}
		return nil
	})
}

// Preload puts images into the directory that a server imports at start.
func (h *Host) Preload(t testing.TB, preload ...images.Image) {
	t.Helper()
	dir := h.Path("/var/lib/mote/images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, im := range preload {
		if err := im.Save(filepath.Join(dir, fmt.Sprintf("image-%d.tar", i))); err != nil {
			t.Fatal(err)
		}
	}
}
