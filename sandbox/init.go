package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// initProcess is the supervisor's side of the sandbox's first process.
type initProcess struct {
	cmd    *exec.Cmd
	gate   *os.File      // what the process waits on: a spec, or the end of the supervisor
	status *os.File      // an error of Enter, or its end
	netns  *os.File      // its network namespace
	done   chan struct{} // closed when the process has ended
	err    error         // how it ended; read after done
}

// startInit starts the first process in fresh namespaces. It waits there for release. Its cgroup
// namespace comes later: that shows the groups that the process is in when it is made.
func startInit(exe string, log io.Writer) (*initProcess, error) {
	gateEnd, gate, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the sandbox: %w", err)
	}
	defer gateEnd.Close()
	status, statusEnd, err := os.Pipe()
	if err != nil {
		gate.Close()
		return nil, fmt.Errorf("start the sandbox: %w", err)
	}
	defer statusEnd.Close()
	cmd := exec.Command(exe, VerbInit)
	cmd.Env = environ()
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = gateEnd, log, log
	cmd.ExtraFiles = []*os.File{statusEnd}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true, // the terminal's signals are for the supervisor and its command
	}
	p := &initProcess{cmd: cmd, gate: gate, status: status, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel takes the thread that started a process for its parent, and kills the process
		// when that thread ends; a locked thread stays until this function returns.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			// Opened once: a later look by process id might find another process's.
			p.netns, err = os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
		}
		if err != nil {
			gate.Close() // which ends the process if there is one
		}
		started <- err
		if cmd.Process == nil {
			return
		}
		p.err = cmd.Wait()
		if p.err == nil {
			p.err = errors.New("exit status 0")
		}
		close(p.done)
	}()
	if err := <-started; err != nil {
		status.Close()
		return nil, fmt.Errorf("start the sandbox: %w", err)
	}
	return p, nil
}

func (p *initProcess) pid() int { return p.cmd.Process.Pid }

// root is a path to the root directory inside. Before release has returned it is the host's.
func (p *initProcess) root() string { return rootOf(p.pid()) }

// release lets the process go on, and returns when it has become the server's.
func (p *initProcess) release(ctx context.Context, sp spec) error {
	defer p.status.Close()
	err := json.NewEncoder(p.gate).Encode(sp)
	if err := errors.Join(err, p.gate.Close()); err != nil {
		return fmt.Errorf("start the sandbox: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { p.status.SetReadDeadline(time.Unix(1, 0)) })
	message, err := io.ReadAll(p.status)
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("start the sandbox: %w", err)
	}
	if len(message) > 0 {
		return errors.New(string(message))
	}
	return nil
}

// stop asks the server to stop and waits for that at most for timeout.
func (p *initProcess) stop(timeout time.Duration) {
	_ = p.cmd.Process.Signal(unix.SIGTERM) // one that is gone already is fine
	select {
	case <-p.done:
	case <-time.After(timeout):
	}
}

// kill ends every process inside: the kernel does that when the first one of a PID namespace dies.
// Nothing may be dialled any more.
func (p *initProcess) kill() {
	p.gate.Close()
	p.status.Close()
	p.netns.Close()
	_ = p.cmd.Process.Kill() // one that is gone already is fine
}

// dial connects to a TCP address inside. Only the thread that makes the socket is inside, and it
// ends with this call: a socket belongs to the namespace that it was made in.
func (p *initProcess) dial(ctx context.Context, address string) (conn net.Conn, err error) {
	onThread(func() { conn, err = p.dialHere(ctx, address) })
	return conn, err
}

// onThread calls do on a thread that nothing else runs on afterwards. It is never the main thread:
// that one cannot be ended, and its namespaces are taken for the process's.
func onThread(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(do) // elsewhere, because this thread is taken
			return
		}
		do() // never unlocked: the runtime ends the thread with the goroutine
	}()
	<-done
}

func (p *initProcess) dialHere(ctx context.Context, address string) (net.Conn, error) {
	if err := unix.Setns(int(p.netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter the sandbox's network: %w", err)
	}
	// An address without a name makes the dialer open its socket right here, on this goroutine.
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}
