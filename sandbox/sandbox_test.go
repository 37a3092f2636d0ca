package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// testTimeout bounds every wait of a test.
const testTimeout = 30 * time.Second

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes namespaces: needs root")
	}
}

func start(t *testing.T, cfg Config) *Sandbox {
	t.Helper()
	needRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	s, err := Start(ctx, cfg)
	if start := (*StartError)(nil); errors.As(err, &start) {
		t.Log(strings.Join(start.Log, "\n"))
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// look asks the server inside for its view of the surroundings.
func look(t *testing.T, s *Sandbox) surroundings {
	t.Helper()
	body, err := get(t.Context(), s.api.client, s.api.server+"/self")
	require.NoError(t, err)
	defer body.Close()
	var seen surroundings
	require.NoError(t, json.NewDecoder(body).Decode(&seen))
	return seen
}

// requireGone waits until nothing of a sandbox is left on the host.
func requireGone(t *testing.T, id string) {
	t.Helper()
	var left []string
	require.Eventually(t, func() bool {
		left = traces(t, id)
		return len(left) == 0
	}, testTimeout, 5*time.Millisecond)
	require.Empty(t, left)
}

// traces lists everything of sandbox id on the host.
func traces(t *testing.T, id string) []string {
	t.Helper()
	var found []string
	hs, err := hierarchies()
	require.NoError(t, err)
	paths := []string{filepath.Join(StateRoot, id)}
	for _, h := range hs {
		paths = append(paths, filepath.Join(h.mount, cgroupName(id)))
	}
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			found = append(found, path)
		}
	}
	procs, err := os.ReadDir("/proc")
	require.NoError(t, err)
	for _, p := range procs {
		dir := filepath.Join("/proc", p.Name())
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		mounts, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		if strings.Contains(string(cmdline)+string(environ)+string(mounts)+string(cgroup), id) {
			found = append(found, fmt.Sprintf("process %s: %q", p.Name(), cmdline))
		}
	}
	return found
}

func TestInsideIsApart(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "app.tar")
	require.NoError(t, os.WriteFile(archive, []byte("archive"), 0o600))
	before, err := os.ReadFile("/proc/sys/kernel/panic")
	needRoot(t)
	require.NoError(t, err)

	s := start(t, Config{Hostname: "box", Images: []string{archive}})
	seen := look(t, s)

	require.Empty(t, seen.Errors)
	require.Equal(t, "box", seen.Hostname)
	require.Equal(t, 1, seen.PID)
	require.Equal(t, []string{"lo up|loopback|running"}, seen.Links)
	require.Equal(t, []string{"00-app.tar"}, seen.Images)
	require.Empty(t, seen.Writable, "the archive is the host's")
	for kind, here := range namespaces("self") {
		require.NotEqual(t, here, seen.Namespaces[kind], kind)
	}
	for line := range strings.Lines(seen.Cgroup) {
		group := strings.SplitN(strings.TrimSpace(line), ":", 3)[2]
		require.Equal(t, "/", group, "every hierarchy must begin at the sandbox's own group")
	}
	for _, path := range []string{"/etc/sandbox-test", "/usr/sandbox-test", "/dev/sandbox-test", "/tmp/sandbox-test", "/var/log/sandbox-test"} {
		require.NoFileExists(t, path)
	}
	after, err := os.ReadFile("/proc/sys/kernel/panic")
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
}

func TestNothingIsLeft(t *testing.T) {
	s := start(t, Config{})
	look(t, s) // the server makes files, mounts and cgroups inside
	require.NotEmpty(t, traces(t, s.id))
	require.NoError(t, s.Close())
	require.Empty(t, traces(t, s.id), "Close must return when everything is gone")
}

func TestCommandSeesCluster(t *testing.T) {
	s := start(t, Config{})
	var out strings.Builder
	code, err := s.Run(Command{
		Args:   []string{"sh", "-c", `grep -o "server: .*" $KUBECONFIG; command -v kubectl; stat -c %a $KUBECONFIG; exit 7`},
		Stdout: &out,
	}, nil)
	require.NoError(t, err)
	require.Equal(t, 7, code)
	require.Equal(t, fmt.Sprintf("server: %s\n%s/bin/kubectl\n600\n", s.Server(), s.paths.dir), out.String())
}

// TestNames checks that other processes find a sandbox by its name, and that no other sandbox can
// take the name.
func TestNames(t *testing.T) {
	for _, bad := range []string{"", "Upper", "-a", "a-", "a/b", "..", strings.Repeat("a", 41)} {
		require.ErrorContains(t, CheckName(bad), "is not a name for a sandbox", bad)
	}
	needRoot(t)
	_, err := Start(t.Context(), Config{Name: "no/name"})
	require.ErrorContains(t, err, "is not a name for a sandbox")

	name := "named-" + newID()
	s := start(t, Config{Name: name, Dir: filepath.Join(t.TempDir(), "state")})
	_, err = Start(t.Context(), Config{Name: name})
	require.ErrorContains(t, err, "a sandbox called "+name+" runs already")
	// This happens to a sandbox that starts at the same moment as another with its name.
	lock, _, err := makeHost(newID(), name)
	require.ErrorContains(t, err, "a sandbox called "+name+" runs already")
	lock.Close()
	start(t, Config{}) // this also removes the remains of that sandbox

	found, err := Find(name)
	require.NoError(t, err)
	require.True(t, found.Ready)
	require.Equal(t, []any{s.id, os.Getpid(), s.Server(), s.cfg.Dir}, []any{found.ID, found.PID, found.Server, found.Dir})
	var out strings.Builder
	env := append(os.Environ(), found.Env()...)
	cmd := exec.Command("sh", "-c", "grep -h current-context $KUBECONFIG; ls ${MOTE_RUN_DIR%/mote}/sandbox/bin/mote")
	cmd.Env, cmd.Stdout = env, &out
	require.NoError(t, cmd.Run())
	require.Contains(t, out.String(), "current-context: mote-run-"+name+"\n")

	require.NoError(t, s.Close())
	_, err = Find(name)
	require.ErrorContains(t, err, fmt.Sprintf("no sandbox is called %q", name))
}

// TestWeight checks that a cluster, beside the processes in the root group, has the weight of its
// content.
func TestWeight(t *testing.T) {
	s := start(t, Config{})
	hs, err := hierarchies()
	require.NoError(t, err)
	for _, h := range hs {
		shares, err := os.ReadFile(filepath.Join(h.mount, cgroupName(s.id), "cpu.shares"))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintln(2*runtime.NumCPU()*sharesOfProcess), string(shares))
	}
}

func TestCommandEndedBySignal(t *testing.T) {
	s := start(t, Config{})
	code, err := s.Run(Command{Args: []string{"sh", "-c", "kill -9 $$"}}, nil)
	require.NoError(t, err)
	require.Equal(t, 137, code)
}

func TestWhatCommandLeavesRunningEndsToo(t *testing.T) {
	s := start(t, Config{})
	code, err := s.Run(Command{Args: []string{"sh", "-c", "setsid sleep 1000 & setsid setsid sleep 1001 &"}}, nil)
	require.NoError(t, err)
	require.Zero(t, code)
	// While a process executes another program, it has no environment for a moment.
	require.Eventually(t, func() bool {
		pids, err := marked(marker + "=" + s.id)
		return err == nil && len(pids) > 0
	}, 10*time.Second, time.Millisecond)
	require.NoError(t, s.Close())
	require.Empty(t, traces(t, s.id))
}

func TestClusterEndsUnderCommand(t *testing.T) {
	s := start(t, Config{})
	require.NoError(t, s.init.cmd.Process.Kill())
	_, err := s.Run(Command{Args: []string{"sleep", "1000"}}, nil)
	require.ErrorIs(t, err, ErrClusterEnded)
}

func TestPublish(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := netip.MustParseAddrPort(l.Addr().String())
	cfg := Config{Publish: []Publish{{Host: host, NodePort: 30080}}}

	needRoot(t)
	_, err = Start(t.Context(), cfg)
	require.ErrorContains(t, err, fmt.Sprintf("cannot publish NodePort 30080 on %s: the port is in use", host))
	require.NoError(t, l.Close())

	// A client that comes before the NodePort answers is served when it answers.
	cfg.Args = []string{"server", "late"}
	s := start(t, cfg)
	conn, err := net.Dial("tcp", host.String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write(make([]byte, 1<<20))
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	body, err := get(t.Context(), s.api.client, s.api.server+"/listen")
	require.NoError(t, err)
	body.Close()
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "got 1048576 bytes", string(answer))
}

func TestDirIsKept(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "state")
	first := start(t, Config{Dir: dir})
	_, err := Start(t.Context(), Config{Dir: dir})
	require.ErrorContains(t, err, "another sandbox runs on it")
	require.NoError(t, first.Close())
	require.FileExists(t, filepath.Join(dir, "data", "stopped"), "the server must be stopped, not killed")
	require.Empty(t, traces(t, first.id))

	second := start(t, Config{Dir: dir})
	require.FileExists(t, second.init.root()+dataDir+"/stopped")
}

func TestStartSaysWhatServerSaid(t *testing.T) {
	needRoot(t)
	_, err := Start(t.Context(), Config{Args: []string{"server", "broken"}})
	require.EqualError(t, err, "the cluster ended: exit status 1")
	var se *StartError
	require.ErrorAs(t, err, &se)
	require.Equal(t, []string{"this server is broken"}, se.Log)
}

func TestStartIsInterrupted(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	_, err := Start(ctx, Config{Args: []string{"server", "not-ready"}, Report: func(step Step) {
		if step.Name == "Start the API server" && !step.Done {
			cancel(interrupted)
		}
	}})
	require.ErrorIs(t, err, interrupted)
}

// supervisor is a supervisor in a process of its own.
type supervisor struct {
	cmd *exec.Cmd
	out *bufio.Scanner
	id  string
}

// startSupervisor starts a supervisor with a shell script as its command. It returns when the
// script runs. The script first prints the ID of its sandbox.
func startSupervisor(t *testing.T, script string) *supervisor {
	t.Helper()
	needRoot(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "supervise", "{}", "sh", "-c", "echo $MOTE_SANDBOX; "+script)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true} // there is no terminal, wherever the test runs
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	s := &supervisor{cmd: cmd, out: bufio.NewScanner(stdout)}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if s.out.Scan() {
		s.id = s.out.Text()
	}
	require.Len(t, s.id, 8)
	return s
}

func (s *supervisor) wait(t *testing.T) int {
	t.Helper()
	_ = s.cmd.Wait()
	return exitCode(s.cmd.ProcessState)
}

func TestEndings(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		signal       unix.Signal
		code         int
	}{
		{name: "normal", script: "true"},
		{name: "failing command", script: "exit 3", code: 3},
		{name: "SIGINT", script: "sleep 1000; true", signal: unix.SIGINT, code: 130},
		{name: "SIGTERM", script: "sleep 1000; true", signal: unix.SIGTERM, code: 143},
		{name: "SIGKILL", script: "sleep 1000; true", signal: unix.SIGKILL, code: 137},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // this also tests several sandboxes side by side
			s := startSupervisor(t, tt.script)
			if tt.signal != 0 {
				require.NotEmpty(t, traces(t, s.id))
				require.NoError(t, s.cmd.Process.Signal(tt.signal))
			}
			require.Equal(t, tt.code, s.wait(t))
			if tt.signal != unix.SIGKILL {
				require.Empty(t, traces(t, s.id), "nothing may be left when the supervisor has ended")
			}
			requireGone(t, s.id)
		})
	}
}

// TestKilledWhileStarting checks that a supervisor may die at any moment, even before there is
// anything to remove.
func TestKilledWhileStarting(t *testing.T) {
	needRoot(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	// All subtests end with their group. Their keepers end after that.
	t.Run("after", func(t *testing.T) {
		for delay := time.Duration(0); delay < 200*time.Millisecond; delay += 10 * time.Millisecond {
			t.Run(delay.String(), func(t *testing.T) {
				t.Parallel()
				// The mark is in the arguments of the server, and so in every trace except the
				// keeper's.
				mark := newID()
				cfg := fmt.Sprintf(`{"Args": ["server", %q]}`, mark)
				cmd := exec.Command(exe, "supervise", cfg, "sleep", "1000")
				require.NoError(t, cmd.Start())
				timer := time.NewTimer(delay)
				<-timer.C
				require.NoError(t, cmd.Process.Kill())
				_ = cmd.Wait()
				requireGone(t, mark)
			})
		}
	})
	requireNoKeepers(t, exe)
}

// requireNoKeepers waits until no keeper of this test's program is left.
func requireNoKeepers(t *testing.T, exe string) {
	t.Helper()
	require.Eventually(t, func() bool {
		procs, _ := os.ReadDir("/proc")
		return !slices.ContainsFunc(procs, func(p os.DirEntry) bool {
			cmdline, _ := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
			return strings.HasPrefix(string(cmdline), exe+"\x00"+VerbKeeper)
		})
	}, testTimeout, 5*time.Millisecond)
}

// TestRemainsAreRemoved checks that the keeper may be killed too: the next sandbox removes the
// remains.
func TestRemainsAreRemoved(t *testing.T) {
	s := start(t, Config{})
	require.NoError(t, s.keeper.cmd.Process.Kill())
	require.NoError(t, s.Close(), "the supervisor must do a killed keeper's work")
	require.Empty(t, traces(t, s.id))

	old := newID()
	lock, _, err := makeHost(old, old)
	require.NoError(t, err)
	lock.Close()
	start(t, Config{})
	requireGone(t, old)
}

// TestInsideAnother checks that a sandbox works in a container: the root group of a sandbox has
// processes, like that of a container.
func TestInsideAnother(t *testing.T) {
	needRoot(t)
	_, err := Start(t.Context(), Config{Args: []string{"supervise", "{}", "echo", "from the inner one"}})
	var ended *StartError
	require.ErrorAs(t, err, &ended)
	require.EqualError(t, err, "the cluster ended: exit status 0", strings.Join(ended.Log, "\n"))
	require.Contains(t, ended.Log, "from the inner one")
}
