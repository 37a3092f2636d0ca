// Package sandbox runs throwaway clusters: one mote server in fresh mount, network, PID, UTS, IPC
// and cgroup namespaces, on a tmpfs that overlays the host's files. Its API is forwarded to a
// loopback port of the host.
//
// To use it, fill a Config, Start it, Run commands against the Sandbox, and Close it. Start
// executes the mote file twice more, under two hidden verbs that the program must implement:
// VerbKeeper calls Keep; VerbInit calls Enter and then executes the program that Enter returns.
// README.md describes the start and draws the processes.
//
// Invariants: the keeper makes and removes everything that a sandbox has on the host, and outlives
// a killed supervisor. Everything on the host belongs to a sandbox that has a directory in
// StateRoot. Processes inside cannot write to a file of the host outside Config.Dir.
//
// A Sandbox's methods are safe for concurrent use. Several sandboxes may live in one process.
package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mote-k8s/mote/internal/inotify"
)

// VerbKeeper and VerbInit are the hidden verbs under which Start executes Config.Exe.
const (
	VerbKeeper = "sandbox-keeper"
	VerbInit   = "sandbox-init"
)

// contextPrefix begins the name of the cluster, user and context in a sandbox's kubeconfig, so that
// the kubeconfigs of several sandboxes can be merged.
const contextPrefix = "mote-run-"

// stopTimeout bounds a clean stop of the server of a sandbox with a Dir. The server itself gives 10
// s to each of its components. A sandbox without a Dir is killed at once.
const stopTimeout = 15 * time.Second

// Step is a change in the progress of Start.
type Step struct {
	Name string        // e.g. "Start the API server"
	Done bool          // false when the step begins
	Err  error         // of a step that is done
	Took time.Duration // of a step that is done
}

// Sandbox is a running cluster.
type Sandbox struct {
	cfg     Config
	id      string
	started time.Time
	keeper  *keeper
	init    *initProcess
	log     *tail
	api     *kubeAPI
	paths   hostPaths

	forwards  []*forward
	closeOnce sync.Once
	closeErr  error
}

// StartError is the error of Start if the cluster did not come up.
type StartError struct {
	Err error
	// Log holds the last lines that the server wrote, oldest first.
	Log []string
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// Start starts a cluster and returns when it has reached the state that cfg.Wait names. If ctx ends
// before that, or anything fails, Start leaves nothing behind. ctx does not bound the life of a
// started Sandbox.
func Start(ctx context.Context, cfg Config) (*Sandbox, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	s := &Sandbox{cfg: cfg, id: newID(), log: newTail(cfg.Log), started: time.Now()}
	if s.cfg.Name == "" {
		s.cfg.Name = s.id
	}
	if err := s.start(ctx); err != nil {
		err = &StartError{Err: err, Log: s.log.Lines()}
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// start does all steps of Start. Each step needs the ones before it.
func (s *Sandbox) start(ctx context.Context) error {
	// This detects missing resources of the host before anything is made.
	if err := inotify.CheckInstances(); err != nil {
		return fmt.Errorf("cannot start another cluster: %w", err)
	}
	listeners, err := listen(s.cfg.Publish)
	if err != nil {
		return err
	}
	defer closeAll(listeners) // the listeners that no forward has taken over
	if err := s.step("Make namespaces", func() error { return s.isolate(ctx) }); err != nil {
		return err
	}
	s.api = newKubeAPI(s.init.root(), contextPrefix+s.cfg.Name, s.init.dial)
	if err := s.forwardAll(listeners); err != nil {
		return err
	}
	if err := s.publishInfo(false); err != nil {
		return err
	}
	if err := s.step("Start the API server", func() error { return s.until(ctx, s.api.waitReady) }); err != nil {
		return err
	}
	config, err := s.api.kubeconfig(s.Server())
	if err != nil {
		return err
	}
	if err := s.paths.write(s.cfg.Exe, config); err != nil {
		return err
	}
	if s.cfg.Wait == WaitNode {
		if err := s.step("Wait for the node", func() error { return s.until(ctx, s.api.waitNode) }); err != nil {
			return err
		}
	}
	return s.publishInfo(true)
}

// isolate starts the keeper and, at the same time, the first process of the sandbox. It lets the
// first process go on when the keeper has made everything that the sandbox needs on the host.
func (s *Sandbox) isolate(ctx context.Context) error {
	dir, err := s.cfg.lockDir()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close() // from here on the keeper's copy holds the lock
	}
	if s.keeper, err = startKeeper(s.cfg.Exe, s.id, s.cfg.Name, dir); err != nil {
		return err
	}
	if s.init, err = startInit(s.cfg.Exe, s.log); err != nil {
		return err
	}
	made, err := s.keeper.made(ctx)
	if err != nil {
		return err
	}
	s.paths = hostPaths{dir: made.Dir}
	if err := joinCgroups(made.Cgroups, s.init.pid()); err != nil {
		return err
	}
	return s.init.release(ctx, spec{
		Stage:    made.Dir,
		Exe:      s.cfg.Exe,
		Args:     s.cfg.Args,
		Dir:      s.cfg.Dir,
		Images:   s.cfg.Images,
		Hostname: s.cfg.Hostname,
	})
}

// forwardAll serves the API on a free loopback port, and then the ports that cfg publishes.
func (s *Sandbox) forwardAll(published []net.Listener) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("forward the API: %w", err)
	}
	s.forwards = append(s.forwards, startForward(l, func(ctx context.Context) (net.Conn, error) {
		return s.init.dial(ctx, s.api.address())
	}))
	for i, l := range published {
		s.forwards = append(s.forwards, startForward(l, patient(func(ctx context.Context) (net.Conn, error) {
			return s.api.dialNodePort(ctx, s.cfg.Publish[i].NodePort)
		})))
		published[i] = nil
	}
	return nil
}

// until calls wait with a context that also ends when the sandbox's first process ends.
func (s *Sandbox) until(ctx context.Context, wait func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.init.done:
			cancel(fmt.Errorf("the cluster ended: %w", s.init.err))
		case <-stop:
		}
	}()
	err := wait(ctx)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (s *Sandbox) step(name string, do func() error) error {
	start := time.Now()
	s.cfg.Report(Step{Name: name})
	err := do()
	s.cfg.Report(Step{Name: name, Done: true, Err: err, Took: time.Since(start)})
	return err
}

// Done returns a channel that is closed when the cluster has ended by itself or by Close.
func (s *Sandbox) Done() <-chan struct{} { return s.init.done }

// Log returns the last lines that the server wrote, oldest first.
func (s *Sandbox) Log() []string { return s.log.Lines() }

// Name returns the sandbox's name.
func (s *Sandbox) Name() string { return s.cfg.Name }

// Kubeconfig returns the path of an admin kubeconfig that works on the host until Close.
func (s *Sandbox) Kubeconfig() string { return s.paths.kubeconfig() }

// WriteFile writes a file for a command and returns its path. The file is removed with the sandbox.
func (s *Sandbox) WriteFile(name string, data []byte) (string, error) {
	path := filepath.Join(s.paths.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", fmt.Errorf("write a file for the command: %w", err)
	}
	return path, nil
}

// Server returns the URL of the forwarded API.
func (s *Sandbox) Server() string { return "https://" + s.forwards[0].address() }

// Close ends the cluster and all processes that were started with its environment, and returns when
// nothing is left. Its error names what is left.
func (s *Sandbox) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Sandbox) close() error {
	for _, f := range s.forwards {
		f.close()
	}
	if s.api != nil {
		s.api.close()
	}
	if s.init != nil {
		if s.cfg.Dir != "" && s.api != nil {
			s.init.stop(stopTimeout)
		}
		s.init.kill()
	}
	if s.keeper == nil {
		return nil
	}
	err := s.keeper.close()
	if s.init != nil {
		<-s.init.done
	}
	return err
}

func newID() string {
	b := make([]byte, 4)
	rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		if l != nil {
			l.Close()
		}
	}
}

// tail keeps the last lines that are written to it and copies everything to w.
type tail struct {
	w io.Writer

	mu    sync.Mutex // guards the fields below
	lines []string
	part  []byte
}

// tailLines is the number of kept lines. They suffice for an error and the lines that led to it,
// and fit on a terminal.
const tailLines = 30

func newTail(w io.Writer) *tail {
	if w == nil {
		w = io.Discard
	}
	return &tail{w: w}
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range p {
		if c != '\n' {
			t.part = append(t.part, c)
			continue
		}
		t.lines = append(t.lines, string(t.part))
		t.part = t.part[:0]
	}
	if n := len(t.lines) - tailLines; n > 0 {
		t.lines = append(t.lines[:0], t.lines[n:]...)
	}
	return t.w.Write(p)
}

// Lines returns the kept lines, including an unfinished one.
func (t *tail) Lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := append([]string(nil), t.lines...)
	if len(t.part) > 0 {
		lines = append(lines, string(t.part))
	}
	return lines
}

// hostPaths builds the paths of the files that a sandbox's directory on the host holds for
// commands.
type hostPaths struct{ dir string }

func (p hostPaths) kubeconfig() string { return filepath.Join(p.dir, "kubeconfig") }
func (p hostPaths) cache() string      { return filepath.Join(p.dir, "cache") }
func (p hostPaths) bin() string        { return filepath.Join(p.dir, "bin") }

// write writes the kubeconfig and makes the links to exe, one under each of its names.
func (p hostPaths) write(exe string, kubeconfig []byte) error {
	if err := os.WriteFile(p.kubeconfig(), kubeconfig, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	if err := os.Mkdir(p.bin(), 0o755); err != nil {
		return fmt.Errorf("make a directory for commands: %w", err)
	}
	for _, name := range commandNames {
		if err := os.Symlink(exe, filepath.Join(p.bin(), name)); err != nil {
			return fmt.Errorf("link a command: %w", err)
		}
	}
	return nil
}
