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
	gate   *os.File      // the process waits on it for a spec, or for the end of the supervisor
	status *os.File      // carries an error of Enter, or ends without one
	netns  *os.File      // the process' network namespace
	done   chan struct{} // closed when the process has ended
	err    error         // the reason for the end; read it only after done
}

// startInit starts the first process in fresh namespaces, where it waits for release. The cgroup
// namespace comes later, because its tops are the groups that the process is in when the namespace
// is made.
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
		// The kernel treats the thread that started a process as its parent, and kills the process
		// when that thread ends. A locked thread stays until this function returns.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			// This opens the namespace once. Later the process ID might belong to another process.
			p.netns, err = os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/net")
		}
		if err != nil {
			gate.Close() // this ends the process if there is one
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

// root returns a path to the root directory inside. Before release has returned, it is the host's
// root.
func (p *initProcess) root() string { return rootOf(p.pid()) }

// release lets the process go on, and returns when it has executed the server.
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

// stop asks the server to stop and waits for its end, at most for timeout.
func (p *initProcess) stop(timeout time.Duration) {
	_ = p.cmd.Process.Signal(unix.SIGTERM) // the process may have ended already
	select {
	case <-p.done:
	case <-time.After(timeout):
	}
}

// kill ends every process inside: the kernel does that when the first process of a PID namespace
// dies. The caller must not dial afterwards.
func (p *initProcess) kill() {
	p.gate.Close()
	p.status.Close()
	p.netns.Close()
	_ = p.cmd.Process.Kill() // the process may have ended already
}

// dial connects to a TCP address inside. Only the thread that makes the socket enters the
// namespace, and it ends with this call. A socket stays in the namespace in which it was made.
func (p *initProcess) dial(ctx context.Context, address string) (conn net.Conn, err error) {
	onThread(func() { conn, err = p.dialHere(ctx, address) })
	return conn, err
}

// onThread calls do on a thread that runs nothing else afterwards. It is never the main thread,
// which cannot be ended and whose namespaces count as those of the process.
func onThread(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			onThread(do) // on another thread, because this one is locked
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
	// The address has no host name, so the dialer opens its socket on this goroutine.
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}
