package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// programs are the processes that make a cluster. If one ends before stop is called, the first such
// program cancels the context with the reason.
type programs struct {
	logs string
	fail context.CancelCauseFunc

	mu       sync.Mutex // guards the fields below
	running  []*program
	stopping bool
}

type program struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

func newPrograms(ctx context.Context, logs string) (context.Context, *programs) {
	ctx, fail := context.WithCancelCause(ctx)
	return ctx, &programs{logs: logs, fail: fail}
}

// start executes args with env added to this process's environment; its output goes to a log file.
func (p *programs) start(name string, env []string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(p.logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return fmt.Errorf("cannot start %s: the cluster is being stopped", name)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	one := &program{name: name, cmd: cmd, done: make(chan struct{})}
	p.running = append(p.running, one)
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.stopping {
			p.fail(fmt.Errorf("%s ended by itself: %w", name, err))
		}
		close(one.done)
	}()
	return nil
}

// stop ends all programs, the last one first, and returns when they are gone.
func (p *programs) stop() {
	p.mu.Lock()
	p.stopping = true
	running := p.running
	p.mu.Unlock()
	for _, one := range slices.Backward(running) {
		// An error means that it has ended already, as wanted.
		_ = one.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-one.done:
		case <-time.After(stopTimeout):
			_ = one.cmd.Process.Kill()
			<-one.done
		}
	}
}

// stopTimeout is the time in which a program must end by itself: the kubelet's and apiserver's own
// limits are well below.
const stopTimeout = 20 * time.Second

// printLogs prints the end of every log, for a trial that failed.
func printLogs(folder string) error {
	files, err := filepath.Glob(filepath.Join(folder, "*.log"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		const shown = 15
		lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
		fmt.Fprintf(os.Stderr, "--- end of %s\n%s\n", filepath.Base(file), bytes.Join(lines[max(0, len(lines)-shown):], []byte("\n")))
	}
	return nil
}
