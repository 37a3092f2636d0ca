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

	"github.com/k3s-io/kine/pkg/server"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/mote-k8s/mote/datastore/bolt"
)

const (
	// etcdVersion is what Status answers. The apiserver derives from it whether watches can be asked
	// for their progress (etcd 3.5.13), which consistent reads from its cache need.
	etcdVersion = "3.6.13"
	// progressInterval is how often an idle watch is told the current revision. It must be well
	// below the apiserver's five minutes between compactions, or idle watches could not be resumed;
	// every tick wakes the apiserver once for each resource.
	progressInterval = time.Minute
	// maxRequest is the largest request in bytes: etcd's limit, and room for the protocol around it.
	maxRequest = 2 << 20
	// minPing is how often clients may ping: etcd's limit; the apiserver pings every 30 s.
	minPing = 5 * time.Second
	// stopTimeout is how long requests in flight may take at the end. Only watch streams of clients
	// that did not go before us take longer, and they are not waiting for anything.
	stopTimeout = time.Second
)

// newServer serves etcd v3 through kine's bridge.
func newServer(store *bolt.Store) *grpc.Server {
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing}),
		// The store may be closed only when no handler uses it any more.
		grpc.WaitForHandlers(true),
	)
	server.New(backend{store}, "unix", progressInterval, etcdVersion).Register(srv)
	return srv
}

// stop ends srv; requests in flight are answered.
func stop(srv *grpc.Server) {
	timer := time.AfterFunc(stopTimeout, srv.Stop)
	defer timer.Stop()
	srv.GracefulStop()
}

// listen binds the socket. The store's lock on its file has made sure that no other mote serves
// the same data; a socket that is left over from a crash is replaced, one that is alive is not.
func listen(ctx context.Context, socket string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the datastore's run directory: %w", err)
	}
	if err := removeStale(socket); err != nil {
		return nil, err
	}
	// A mode set before the socket is bound is the mode that the file is made with.
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
