package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// engine is one of the compared datastores, as a process that serves etcd's protocol on a unix
// socket.
type engine struct {
	name string
	// socket is relative to the directory of the store.
	socket string
	// command serves the store in the directory, with default settings except those for its place.
	command func(dir string) (*exec.Cmd, error)
}

func (o storeOptions) engines() []engine {
	return []engine{
		{name: "mote", socket: "run/datastore.sock", command: o.serveMote},
		{name: "etcd", socket: "etcd.sock", command: o.serveEtcd},
		{name: "kine", socket: "kine.sock", command: o.serveKine},
	}
}

// serveMote serves with mote's command, or with the tests of package datastore: the same code
// without the rest of mote.
func (o storeOptions) serveMote(dir string) (*exec.Cmd, error) {
	if filepath.Base(o.server) == "mote" {
		return exec.Command(o.server, "datastore", "serve", "--path", filepath.Join(dir, "datastore", "state.db"),
			"--listen", "unix://"+filepath.Join(dir, "run", "datastore.sock")), nil
	}
	cmd := exec.Command(o.server)
	cmd.Env = append(os.Environ(), "MOTE_TEST_DATASTORE="+dir)
	return cmd, nil
}

// serveEtcd gives gRPC a socket for itself: etcd is slower when it shares one with HTTP.
func (o storeOptions) serveEtcd(dir string) (*exec.Cmd, error) {
	peer, err := freeAddress()
	if err != nil {
		return nil, err
	}
	web, err := freeAddress()
	if err != nil {
		return nil, err
	}
	// The quota allows a million keys; its default of 2 GiB would end the writes.
	return exec.Command(filepath.Join(o.stock, "etcd"), "--data-dir="+filepath.Join(dir, "data"), "--log-level=error", "--quota-backend-bytes=8589934592",
		"--listen-client-urls=unix://"+filepath.Join(dir, "etcd.sock"), "--advertise-client-urls=http://"+web, "--listen-client-http-urls=http://"+web,
		"--listen-peer-urls=http://"+peer, "--initial-advertise-peer-urls=http://"+peer, "--initial-cluster=default=http://"+peer), nil
}

// serveKine uses kine's default: SQLite in ./db, journal in WAL mode, a sync for each commit.
func (o storeOptions) serveKine(dir string) (*exec.Cmd, error) {
	cmd := exec.Command(filepath.Join(o.stock, "kine"), "--listen-address=unix://"+filepath.Join(dir, "kine.sock"), "--metrics-bind-address=0")
	cmd.Dir = dir
	return cmd, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// storeServer is a running engine and a client of it.
type storeServer struct {
	engine  engine
	cmd     *exec.Cmd
	output  bytes.Buffer
	ended   chan struct{}
	client  *clientv3.Client
	startup time.Duration
}

// startTimeout is for a start with a million keys to read.
const startTimeout = 2 * time.Minute

// start serves the store in dir, and returns when the first read has been answered.
func (e engine) start(ctx context.Context, dir string) (*storeServer, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	cmd, err := e.command(dir)
	if err != nil {
		return nil, err
	}
	s := &storeServer{engine: e, cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", e.name, err)
	}
	go func() {
		_ = cmd.Wait() // it ended; the error does not matter
		close(s.ended)
	}()
	if err := s.connect(ctx, filepath.Join(dir, e.socket)); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	s.startup = time.Since(began)
	return s, nil
}

func (s *storeServer) connect(ctx context.Context, socket string) error {
	began := time.Now()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			break
		}
		select {
		case <-time.After(time.Millisecond):
		case <-s.ended:
			return fmt.Errorf("%s ended by itself: %s", s.engine.name, s.output.String())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen after %s: %w", s.engine.name, time.Since(began).Round(time.Second), ctx.Err())
		}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	s.client = client
	if _, err := client.Get(ctx, "/registry/health"); err != nil {
		return fmt.Errorf("%s does not answer: %w", s.engine.name, err)
	}
	return nil
}

// stop ends the server cleanly.
func (s *storeServer) stop() error {
	var err error
	if s.client != nil {
		err = s.client.Close()
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // an error means that it is gone already
	select {
	case <-s.ended:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	return err
}

// look reads the resource usage of the server so far.
func (s *storeServer) look() (process, error) {
	p, err := readProcess(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid)))
	if err != nil {
		return p, fmt.Errorf("read process of %s: %w", s.engine.name, err)
	}
	return p, nil
}
