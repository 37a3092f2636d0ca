package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

const (
	// maxConnections of each port. Some 20 kB each, 40 with TLS; more wait in the kernel until one is closed.
	maxConnections = 4096
	// maxHeader of a request, cookies included.
	maxHeader = 64 << 10
	// headerTimeout is for a request's header to come, handshakes included.
	headerTimeout = 20 * time.Second
	// idleTimeout is how long a connection without a request is kept. Browsers give up theirs at about that time.
	idleTimeout = 75 * time.Second
	// maxStreams at once on one connection of HTTP/2.
	maxStreams = 128
	// sentTimeout is how long what was sent may wait for the client to take it. The kernel then ends the connection.
	sentTimeout = time.Minute
	// drainTimeout is for requests that are under way when a port is closed.
	drainTimeout = 5 * time.Second
)

// front is a port that is served.
type front struct {
	listener net.Listener
	server   *http.Server
	ended    chan struct{} // closed when nothing is accepted any more
}

// openFront listens on a port of all addresses, with TLS if there is a configuration for it. failed is told when the
// port cannot be served any more.
func openFront(ctx context.Context, port int, secure *tls.Config, handler http.Handler, failed func(error)) (*front, error) {
	config := net.ListenConfig{Control: func(_, _ string, socket syscall.RawConn) error { return setSentTimeout(socket) }}
	config.SetMultipathTCP(false) // it does not know that timeout
	listener, err := config.Listen(ctx, "tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return nil, err
	}
	listener = netutil.LimitListener(listener, maxConnections)
	f := &front{listener: listener, server: newServer(handler, secure), ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		serve := func() error { return f.server.Serve(listener) }
		if secure != nil {
			serve = func() error { return f.server.ServeTLS(listener, "", "") }
		}
		if err := serve(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("serve port %d: %w", port, err))
		}
	}()
	return f, nil
}

func newServer(handler http.Handler, secure *tls.Config) *http.Server {
	server := &http.Server{
		Handler: handler, TLSConfig: secure, Protocols: new(http.Protocols),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: sentTimeout,
		},
	}
	// What clients do wrong any stranger can have us say.
	server.ErrorLog = slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(secure != nil)
	server.Protocols.SetUnencryptedHTTP2(secure == nil) // gRPC without TLS
	return server
}

// setSentTimeout on a listener is for all connections that it accepts.
func setSentTimeout(socket syscall.RawConn) error {
	return onSocket(socket, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(sentTimeout.Milliseconds()))
	})
}

// close frees the port at once and waits for the requests under way.
func (f *front) close() {
	_ = f.listener.Close()
	<-f.ended
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if f.server.Shutdown(ctx) != nil {
		_ = f.server.Close()
	}
}
