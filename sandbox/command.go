package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// commandGrace is the time that a command may take to end after it was asked to. After that, the
// sandbox ends in any case.
const commandGrace = 10 * time.Second

// nameVariable holds the sandbox's name, for prompts and scripts.
const nameVariable = "MOTE_SANDBOX_NAME"

// commandNames are the program names under which the mote file can be called.
var commandNames = [...]string{"mote", "kubectl", "ctr"}

// Command is a program to run on the host against a sandbox.
type Command struct {
	Args           []string // the program and its arguments
	Env            []string // further variables
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// ErrClusterEnded is the error of Run if the cluster ended before the command.
var ErrClusterEnded = errors.New("the cluster ended while the command ran")

// Run runs c with the caller's directory and environment, to which it adds Env, and returns c's
// exit code: 128 plus the signal's number if a signal ended it. It passes signals from the channel
// on to c, except those that a terminal has sent to c as well. It kills c commandGrace after the
// first signal. The program dies with the calling process, and all processes that it leaves running
// die with the sandbox.
func (s *Sandbox) Run(c Command, signals <-chan os.Signal) (int, error) {
	cmd := exec.Command(s.program(c.Args[0]), c.Args[1:]...)
	cmd.Args[0] = c.Args[0]
	// Of two entries with one name the last one counts.
	cmd.Env = append(append(os.Environ(), s.Env()...), c.Env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The kernel sends Pdeathsig when the thread that started the program ends. So the thread must
	// stay until then.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("run %s: %w", c.Args[0], err)
	}
	return s.wait(cmd, signals)
}

// wait waits until a started cmd ends.
func (s *Sandbox) wait(cmd *exec.Cmd, signals <-chan os.Signal) (int, error) {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var kill <-chan time.Time
	var lost error
	done := s.Done()
	end := func(sig os.Signal) {
		s.signal(cmd.Process, sig)
		if kill == nil {
			kill = time.After(commandGrace)
		}
	}
	for {
		select {
		case err := <-ended:
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				return 0, errors.Join(fmt.Errorf("run %s: %w", cmd.Args[0], err), lost)
			}
			return exitCode(cmd.ProcessState), lost
		case sig := <-signals:
			if !terminalSent(sig) {
				end(sig)
			}
		case <-done:
			done, lost = nil, ErrClusterEnded
			end(unix.SIGTERM)
		case <-kill:
			_ = cmd.Process.Kill()
		}
	}
}

// signal sends sig to the command. If a keyboard can send sig, it also sends it to all processes
// that the command has started, as a terminal does: a shell that waits for a program leaves SIGINT
// to the program.
func (s *Sandbox) signal(command *os.Process, sig os.Signal) {
	_ = command.Signal(sig) // the process may have ended already
	number, ok := sig.(unix.Signal)
	if !ok || number == unix.SIGTERM {
		return
	}
	pids, err := marked(marker + "=" + s.id)
	if err != nil {
		return // the command itself has the signal
	}
	for _, pid := range pids {
		if pid != command.Pid {
			_ = unix.Kill(pid, number)
		}
	}
}

func exitCode(state *os.ProcessState) int {
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// terminalSent reports whether sig came from the keyboard, and so went to every process of the
// terminal's foreground group, including the command. The command decides what the signal means, as
// it would under a shell.
func terminalSent(sig os.Signal) bool {
	if sig != unix.SIGINT && sig != unix.SIGQUIT {
		return false
	}
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false // there is no terminal
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// program returns the path of the program name.
func (s *Sandbox) program(name string) string {
	if slices.Contains(commandNames[:], name) {
		return filepath.Join(s.paths.bin(), name)
	}
	return name
}

// Env returns the variables with which a command finds the cluster. Client programs find it by
// KUBECONFIG and PATH, containerd's by the sandbox's sockets.
func (s *Sandbox) Env() []string {
	path := s.paths.bin()
	if p := os.Getenv("PATH"); p != "" {
		path = strings.Join([]string{path, p}, string(os.PathListSeparator))
	}
	found := Info{ID: s.id, Init: s.init.pid()}
	return append(found.Env(), marker+"="+s.id, nameVariable+"="+s.cfg.Name, "PATH="+path)
}
