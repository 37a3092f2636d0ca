package payload

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// unpacked returns the directory with the real programs. It skips the test if this build has none.
func unpacked(t *testing.T) string {
	t.Helper()
	dir, err := Unpack(t.Context(), t.TempDir())
	if errors.Is(err, ErrAbsent) {
		t.Skip(err)
	}
	require.NoError(t, err)
	require.Equal(t, dir, Dir(filepath.Dir(dir)))
	return dir
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.True(t, exit.Exited(), exit.String())
	return exit.ExitCode()
}

func TestProgramsAreStatic(t *testing.T) {
	dir := unpacked(t)
	require.ElementsMatch(t, list(t, dir), []string{
		"runc", "containerd-shim-runc-v2", "bridge", "host-local", "loopback", "portmap", "init", "pause",
	})
	for _, name := range list(t, dir) {
		program, err := elf.Open(filepath.Join(dir, name))
		require.NoError(t, err)
		defer program.Close()
		for _, p := range program.Progs {
			require.NotEqual(t, elf.PT_INTERP, p.Type, name)
		}
	}
}

func TestProgramsSayTheirVersions(t *testing.T) {
	dir := unpacked(t)
	mod, err := os.ReadFile("src/go.mod")
	require.NoError(t, err)
	version := func(module string) string {
		_, rest, found := strings.Cut(string(mod), "\t"+module+" v")
		require.True(t, found, module)
		v, _, _ := strings.Cut(rest, " ")
		return v
	}
	out, err := exec.Command(filepath.Join(dir, "runc"), "--version").CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(out), "runc version "+version("github.com/opencontainers/runc")+"\n")
	require.Contains(t, string(out), "libseccomp: ")

	out, err = exec.Command(filepath.Join(dir, "containerd-shim-runc-v2"), "-v").CombinedOutput()
	require.NoError(t, err)
	require.Contains(t, string(out), "v"+version("github.com/containerd/containerd/v2")+"\n")

	for _, plugin := range []string{"bridge", "host-local", "loopback", "portmap"} {
		cmd := exec.Command(filepath.Join(dir, plugin))
		cmd.Env = []string{"CNI_COMMAND=VERSION"}
		cmd.Stdin = strings.NewReader(`{"cniVersion":"1.0.0"}`)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), `"1.1.0"`, plugin)
	}
}

func TestInitExitsAsItsChildDoes(t *testing.T) {
	program := filepath.Join(unpacked(t), "init")
	tests := []struct {
		args []string
		want int
	}{
		{nil, 2},
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -KILL $$"}, 128 + 9},
		{[]string{"/nonexistent"}, 127},
		{[]string{"/"}, 126},
		// init reaps orphans. They do not end it, and it does not return their exit codes.
		{[]string{"sh", "-c", "(sh -c 'exit 3' &) ; sh -c 'exit 4'; exit 5"}, 5},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.args), func(t *testing.T) {
			require.Equal(t, test.want, exitCode(t, exec.Command(program, test.args...).Run()))
		})
	}
}

func TestInitForwardsSignals(t *testing.T) {
	program := filepath.Join(unpacked(t), "init")
	// A shell cannot trap a signal that was ignored when it began, for example under nohup.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for _, name := range []string{"TERM", "INT", "HUP", "USR1", "USR2", "QUIT"} {
		t.Run(name, func(t *testing.T) {
			// The child waits in a builtin. A trapped signal interrupts it at once, even one that
			// comes just before the wait.
			cmd := exec.CommandContext(t.Context(), program, "sh", "-c", "trap 'kill $!; exit 42' "+name+"; sleep 1000 & echo ready; wait")
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			require.NoError(t, cmd.Process.Signal(unix.SignalNum("SIG"+name)))
			require.Equal(t, 42, exitCode(t, cmd.Wait()))
		})
	}
}

func TestInitReapsOrphans(t *testing.T) {
	program := filepath.Join(unpacked(t), "init")
	// The orphan ends after its parent. A zombie would still have a directory in /proc.
	script := `orphan=$(sh -c 'sh -c "exec >/dev/null; :" & echo $!'); while [ -d /proc/$orphan ]; do :; done; echo reaped`
	out, err := exec.CommandContext(t.Context(), program, "sh", "-c", script).CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "reaped\n", string(out))
}

func TestPauseEndsOnSignalsAsFirstProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a process namespace needs root")
	}
	program := filepath.Join(unpacked(t), "pause")
	for _, signal := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
		cmd := exec.CommandContext(t.Context(), program)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
		require.NoError(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		// The kernel drops a signal that comes before pause waits for it.
		var err error
		require.Eventually(t, func() bool {
			cmd.Process.Signal(signal)
			select {
			case err = <-ended:
				return true
			default:
				return false
			}
		}, waitLimit, waitStep)
		require.Equal(t, 0, exitCode(t, err))
	}
}

const (
	// waitLimit is long enough for a loaded machine. waitStep is the interval of checks of a
	// condition.
	waitLimit = 30 * time.Second
	waitStep  = time.Millisecond
)
