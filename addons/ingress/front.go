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
	"time"

	"github.com/mote-k8s/mote/internal/limit"
)

const (
	// maxHeader limits the header of a request in bytes, cookies included. nginx accepts as much,
	// in 4 buffers of 8 KiB. The header counts by its size.
	maxHeader = 32 << 10
	// headerTimeout limits the wait for a request's header, handshakes included.
	headerTimeout = 20 * time.Second
	// idleTimeout is the time that a connection without a request is kept. Browsers close theirs at
	// about that time.
	idleTimeout = 75 * time.Second
	// maxStreams limits concurrent streams on one HTTP/2 connection. It is the minimum that RFC
	// 9113 (6.5.2) recommends.
	maxStreams = 100
	// streamWindow and connectionWindow limit the body bytes that may arrive over HTTP/2 while pods
	// do not read. The values are nginx's; net/http would take 1 MiB for each. maxFrame limits one
	// read; it is the smallest value allowed.
	streamWindow, connectionWindow, maxFrame = 64 << 10, 256 << 10, 16 << 10
	// sentTimeout is the time that sent data may wait for the client to accept it. The kernel then
	// ends the connection.
	sentTimeout = time.Minute
	// drainTimeout is the time that running requests get when a port is closed.
	drainTimeout = 5 * time.Second
)

// front is a port that is served.
type front struct {
	listener net.Listener
	server   *http.Server
	ended    chan struct{} // closed when the port accepts no more connections
}

// openFront listens on a port of all addresses, with TLS if secure is set. It calls failed when the
// port cannot be served any more.
func openFront(ctx context.Context, port int, secure *tls.Config, handler *proxy, budgets *limit.Budgets, failed func(error)) (*front, error) {
	name := "ingress-http"
	if secure != nil {
		name = "ingress-https"
	}
	listener, err := budgets.Listen(ctx, ":"+strconv.Itoa(port), limit.Config{
		Component: Name, Name: name, Connections: handler.bounds.connections, PerAddress: handler.bounds.connectionsPerSource,
		Own: handler.bounds.connections, Start: headerTimeout, TLS: secure != nil,
		Unacknowledged: handler.bounds.sent,
	})
	if err != nil {
		return nil, err
	}
	turns := turnListener{listener, handler.reads, handler.source}
	f := &front{listener: turns, server: newServer(handler, secure), ended: make(chan struct{})}
	go func() {
		defer close(f.ended)
		serve := func() error { return f.server.Serve(turns) }
		if secure != nil {
			serve = func() error { return f.server.ServeTLS(turns, "", "") }
		}
		if err := serve(); !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			failed(fmt.Errorf("serve port %d: %w", port, err))
		}
	}()
	return f, nil
}

func newServer(handler *proxy, secure *tls.Config) *http.Server {
	server := &http.Server{
		Handler: handler, TLSConfig: secure, Protocols: new(http.Protocols),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ConnContext: handler.withClient,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connectionWindow, MaxReadFrameSize: maxFrame,
			MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: handler.bounds.sent,
		},
	}
	// Log at debug level: any stranger can cause these messages by client errors.
	server.ErrorLog = slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(secure != nil)
	server.Protocols.SetUnencryptedHTTP2(secure == nil) // gRPC without TLS
	return server
}

// close frees the port at once and waits for the running requests.
func (f *front) close() {
	_ = f.listener.Close()
	<-f.ended
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if f.server.Shutdown(ctx) != nil {
		_ = f.server.Close()
	}
}
