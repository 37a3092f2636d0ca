package cluster

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed host.sh
var hostScript []byte

const (
	// hostTimeout is for making a host's namespaces and mounts, some 100 ms on an idle machine.
	hostTimeout = 30 * time.Second
	// commandTimeout limits one command in a host, including kubectl's own waits.
	commandTimeout = 3 * time.Minute
)

// HostConfig lists how a private host differs from the default one.
type HostConfig struct {
	// Name is the host's name, and so the node's. Default "e2e".
	Name string
	// NoCgroups leaves /sys/fs/cgroup an empty directory.
	NoCgroups bool
}

// Host is a private host. It ends with its test.
type Host struct {
	// Dir is a directory that test and host see under the same path.
	Dir string
	// Env is added to the environment of a root login for commands in the host.
	Env    []string
	pid    int
	groups []string
	// Close ends the host with everything in it. Call it only to end a host before its test ends.
	Close func()
}

// NewHost makes a private host.
func NewHost(t testing.TB, cfg HostConfig) *Host {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "e2e"
	}
	h := &Host{Dir: t.TempDir()}
	var err error
	if h.groups, err = makeGroups(); err != nil {
		t.Fatalf("make cgroups of host %s: %v", cfg.Name, err)
	}
	t.Cleanup(func() {
		if err := removeGroups(h.groups); err != nil {
			t.Errorf("remove cgroups of host %s: %v", cfg.Name, err)
		}
	})
	h.start(t, cfg)
	if cfg.NoCgroups {
		h.Run(t, "umount", "-l", "-R", "/sys/fs/cgroup")
	}
	return h
}

func (h *Host) start(t testing.TB, cfg HostConfig) {
	t.Helper()
	script := filepath.Join(h.Dir, "host.sh")
	if err := os.WriteFile(script, hostScript, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	init := exec.Command("sh", script, "join", h.Dir, self)
	init.Env = append(os.Environ(),
		"MOTE_TEST_CGROUPS="+strings.Join(h.groups, " "),
		"MOTE_TEST_BINARY="+Binary(),
		"MOTE_TEST_HOSTNAME="+cfg.Name)
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID |
		unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	var stderr bytes.Buffer
	init.Stderr = &stderr
	hold, err := init.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := init.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := init.Start(); err != nil {
		t.Fatalf("start host %s: %v", cfg.Name, err)
	}
	h.pid = init.Process.Pid
	h.Close = sync.OnceFunc(func() {
		_ = hold.Close()
		_ = init.Process.Kill()
		_ = init.Wait()
	})
	t.Cleanup(h.Close)
	giveUp := time.AfterFunc(hostTimeout, func() { _ = init.Process.Kill() })
	defer giveUp.Stop()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		_ = init.Wait()
		t.Fatalf("host %s did not come up: %q, %v: %s", cfg.Name, line, err, stderr.String())
	}
}

// PID returns the process ID of the host's first process on the machine, for programs that enter
// its namespaces.
func (h *Host) PID() int { return h.pid }

// Path returns the path under which the test finds the host's file path.
func (h *Host) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(h.pid), "root", path)
}

// Start starts cmd in the host. The process that the test holds is the command itself, so signals
// reach it and its process ID on the machine is correct.
func (h *Host) Start(cmd *exec.Cmd) error {
	// The shell moves itself into the host's groups: entering the namespaces alone does not do
	// that.
	const join = `for d in /sys/fs/cgroup/ /sys/fs/cgroup/*/; do
		[ ! -d "$d/host" ] || d=$d/host
		[ ! -w "$d/cgroup.procs" ] || echo $$ >"$d/cgroup.procs"
		[ ! -f /sys/fs/cgroup/cgroup.controllers ] || break
	done
	exec "$@"`
	cmd.Args = append([]string{"sh", "-c", join, "sh"}, cmd.Args...)
	cmd.Path, cmd.Err = "/bin/sh", nil
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	return h.within(unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|
		unix.CLONE_NEWIPC|unix.CLONE_NEWCGROUP, cmd.Start)
}

// within calls f on a thread that is in the host's namespaces of the given kinds. The thread is
// never unlocked, so the runtime ends it with the goroutine and no other goroutine runs on it.
func (h *Host) within(kinds int, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			if kinds&unix.CLONE_NEWNS == 0 {
				return h.enter(kinds, f)
			}
			// Threads share their root and working directory, which prevents setns.
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return fmt.Errorf("unshare root directory: %w", err)
			}
			return h.enter(kinds, f)
		}()
	}()
	return <-result
}

func (h *Host) enter(kinds int, f func() error) error {
	fd, err := unix.PidfdOpen(h.pid, 0)
	if err != nil {
		return fmt.Errorf("find the host's first process: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kinds); err != nil {
		return fmt.Errorf("enter the host's namespaces: %w", err)
	}
	return f()
}

// Dial connects from inside the host's network. The address must be an IP, not a name.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.within(unix.CLONE_NEWNET, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen opens a listener in the host's network, which the test serves. The address must be an IP,
// not a name.
func (h *Host) Listen(network, address string) (listener net.Listener, err error) {
	err = h.within(unix.CLONE_NEWNET, func() error {
		listener, err = net.Listen(network, address)
		return err
	})
	return listener, err
}

// InNetworkOf calls f on a thread in the network namespace of a process of the host, such as a
// container's (ContainerPIDs). Sockets that f opens stay in that namespace.
func (h *Host) InNetworkOf(pid string, f func() error) error {
	namespace, err := os.Open(h.Path(filepath.Join("/proc", pid, "ns", "net")))
	if err != nil {
		return fmt.Errorf("find the network of process %s: %w", pid, err)
	}
	defer namespace.Close()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter the network of process %s: %w", pid, err)
			return
		}
		result <- f()
	}()
	return <-result
}

// Result is the result of a command that has ended.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Try runs a command in the host with an optional stdin and returns its result. The test fails only
// if the command cannot be run at all, or does not end in time.
func (h *Host) Try(t testing.TB, stdin io.Reader, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	cmd.Env = h.Environ()
	// A grandchild that keeps the pipes open must not delay the test.
	cmd.WaitDelay = 5 * time.Second
	if err := h.Start(cmd); err != nil {
		t.Fatalf("start %s: %v", strings.Join(args, " "), err)
	}
	err := cmd.Wait()
	if ctx.Err() != nil {
		t.Fatalf("%s did not end in %v: %s", strings.Join(args, " "), commandTimeout, stderr.String())
	}
	if cmd.ProcessState == nil {
		t.Fatalf("run %s: %v", strings.Join(args, " "), err)
	}
	return Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
}

// Run runs a command in the host and returns its stdout. The test fails if the command fails.
func (h *Host) Run(t testing.TB, args ...string) string {
	t.Helper()
	r := h.Try(t, nil, args...)
	if r.Code != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// datastoreVariable names the environment variable that sets another datastore than the default for
// the servers of every test.
const datastoreVariable = "MOTE_TEST_DATASTORE"

// Environ returns the environment of a command in the host: that of a root login, with no variable
// of the test's except a datastore.
func (h *Host) Environ() []string {
	environ := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LANG=C.UTF-8", "TERM=dumb",
	}
	if endpoint := os.Getenv(datastoreVariable); endpoint != "" {
		environ = append(environ, "MOTE_DATASTORE_ENDPOINT="+endpoint)
	}
	return append(environ, h.Env...)
}

// ContainerPIDs maps the first process of each container to its command. A container's first
// process is a child of a shim.
func (h *Host) ContainerPIDs(t testing.TB) map[string]string {
	t.Helper()
	shims, containers := map[string]bool{}, map[string]string{}
	processes := h.Run(t, "ps", "-eo", "pid=,ppid=,comm=")
	for line := range strings.Lines(processes) {
		// comm holds the first 15 bytes of the program's name.
		if f := strings.Fields(line); f[2] == "containerd-shim" {
			shims[f[0]] = true
		}
	}
	for line := range strings.Lines(processes) {
		if f := strings.Fields(line); shims[f[1]] && f[2] != "containerd-shim" {
			containers[f[0]] = f[2]
		}
	}
	return containers
}
