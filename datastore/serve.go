package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/mote-k8s/mote/datastore/etcd"
)

const (
	// maxMessage is the largest request in bytes: etcd's limit for writes, and room for the
	// envelope.
	maxMessage = etcd.MaxRequest + 512<<10
	// minPing is the shortest interval between a client's pings: etcd's limit; the apiserver pings
	// every 30 s.
	minPing = 5 * time.Second
	// stopTimeout is the time that requests in flight may take at the end: one commit on a slow
	// disk. Watches have ended by then, unless their client has stopped reading.
	stopTimeout = time.Second
)

// server serves the etcd protocol.
type server struct {
	grpc       *grpc.Server
	endStreams func()
}

func newServer(s store) server {
	srv := grpc.NewServer(
		grpc.ForceServerCodecV2(etcd.Codec()),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing}),
		// Close the store only after all handlers have returned.
		grpc.WaitForHandlers(true),
	)
	return server{grpc: srv, endStreams: s.register(srv)}
}

// stop ends all watches, then answers the requests in flight.
func (s server) stop() {
	timer := time.AfterFunc(stopTimeout, s.grpc.Stop)
	defer timer.Stop()
	s.endStreams()
	s.grpc.GracefulStop()
}

// listen binds the socket. The store's file lock already guarantees that no other mote serves the
// same data. listen replaces a socket that a crash has left; it refuses one on which a process
// listens.
func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the datastore's run directory: %w", err)
	}
	if err := removeStale(socket); err != nil {
		return nil, err
	}
	// The socket file gets the mode that is set before the bind.
	private := func(_, _ string, conn syscall.RawConn) error {
		var mode error
		err := conn.Control(func(fd uintptr) { mode = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, mode)
	}
	config := net.ListenConfig{Control: private}
	listener, err := config.Listen(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on datastore socket %s: %w", socket, err)
	}
	return listener, nil
}

func removeStale(socket string) error {
	info, err := os.Lstat(socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("cannot look at datastore socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("cannot listen on datastore socket %s: it is not a socket; move it away", socket)
	}
	if conn, err := net.Dial("unix", socket); err == nil {
		conn.Close()
		return fmt.Errorf("cannot listen on datastore socket %s: another process serves it; stop the other mote or use another run directory", socket)
	}
	if err := os.Remove(socket); err != nil {
		return fmt.Errorf("cannot replace stale datastore socket: %w", err)
	}
	return nil
}
