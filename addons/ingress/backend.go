package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/addons/api"
)

// protocol is the protocol of a backend. The appProtocol of its Service port selects it.
type protocol int

const (
	plain   protocol = iota // HTTP/1.1
	h2c                     // HTTP/2 without TLS
	overTLS                 // HTTP/1.1 or HTTP/2, as both sides agree
)

const (
	// connectTimeout limits a connection to a pod of this node. Such a pod answers within
	// milliseconds or, behind a policy, never.
	connectTimeout = 5 * time.Second
	// lostTimeout is the time that a pod may leave data unread before its connection ends. A policy
	// that forbids the connection lets no packet through, and no other signal would report that.
	lostTimeout = 20 * time.Second
	// handshakeTimeout limits the TLS handshake with a backend.
	handshakeTimeout = 10 * time.Second
	// asideFor is the time during which an endpoint is tried last after a failed connection.
	asideFor = 10 * time.Second
	// maxTries is the number of different endpoints tried for one request. It makes every request
	// end within 15 s.
	maxTries = 3
	// keptForEach and kept limit the connections that are kept open for the next request, for each
	// endpoint and in total. keptFor limits the time that they are kept.
	keptForEach, kept, keptFor = 256, 1024, time.Minute
	// maxAnswerHeader limits the header of an answer, in bytes.
	maxAnswerHeader = 256 << 10
	// pingAfter is the silence on an HTTP/2 connection after which a ping checks whether it is
	// alive. pingTimeout limits the wait for the answer.
	pingAfter, pingTimeout = 30 * time.Second, 15 * time.Second
)

var errNoEndpoint = errors.New("the Service has no ready endpoint")

// endpoint is the address of a pod. The same endpoint is kept when routes change.
type endpoint struct {
	address string
	aside   atomic.Int64 // until then (Unix time in ns) other endpoints are tried first
	kept    keptConnections
}

// backend is the port of a Service. It implements http.RoundTripper and sends a request to one of
// its endpoints.
type backend struct {
	name      string // NAMESPACE/SERVICE:PORT
	protocol  protocol
	endpoints []*endpoint
	next      atomic.Uint32
	direct    direct
	transport *http.Transport
	handler   http.Handler
}

// RoundTrip tries the endpoints in turn. If no connection to an endpoint can be made, the endpoint
// has not received the request, so the request goes to another one.
func (b *backend) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(b.endpoints) == 0 {
		return nil, errNoEndpoint
	}
	if r.Body != nil && r.Body != http.NoBody {
		// A transport closes the body of a request that it could not send. The proxy closes the
		// body at the end.
		r.Body = io.NopCloser(r.Body)
	}
	if under, ok := r.Context().Value(requestKey{}).(*request); ok {
		under.work.Pause() // the steps below wait for the pod
	}
	turn := b.next.Add(1)
	for try := range uint32(maxTries) {
		e := b.pick(turn + try)
		r.URL.Host = e.address
		response, err := b.ask(r, e)
		// If the client has left, the error does not show whether the endpoint answers.
		if !unconnected(err) || r.Context().Err() != nil {
			return response, err
		}
		e.aside.Store(time.Now().Add(asideFor).UnixNano())
		if int(try)+1 >= min(maxTries, len(b.endpoints)) {
			return nil, err
		}
	}
	return nil, errNoEndpoint
}

func (b *backend) ask(r *http.Request, e *endpoint) (*http.Response, error) {
	if b.protocol == plain && b.direct.suits(r) {
		return b.direct.roundTrip(r, e)
	}
	return b.transport.RoundTrip(r)
}

// pick returns the endpoint whose turn it is, or the next one that is not set aside.
func (b *backend) pick(turn uint32) *endpoint {
	n := uint32(len(b.endpoints))
	for i := range n {
		e := b.endpoints[(turn+i)%n]
		if until := e.aside.Load(); until == 0 || time.Now().UnixNano() > until {
			return e
		}
	}
	return b.endpoints[turn%n]
}

// unconnected reports whether err means that no part of the request was sent.
func unconnected(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// transports holds the connections to all endpoints, by protocol.
type transports [overTLS + 1]*http.Transport

func newTransports() transports {
	dialer := &net.Dialer{Timeout: connectTimeout, ControlContext: prepareSocket}
	newOne := func() *http.Transport {
		return &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: handshakeTimeout,
			MaxIdleConnsPerHost: keptForEach, MaxIdleConns: kept, IdleConnTimeout: keptFor,
			MaxResponseHeaderBytes: maxAnswerHeader, ExpectContinueTimeout: time.Second,
			DisableCompression: true, // the client gets the encoding that it asked for
			HTTP2:              &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		}
	}
	t := transports{newOne(), newOne(), newOne()}
	t[h2c].Protocols = new(http.Protocols)
	t[h2c].Protocols.SetUnencryptedHTTP2(true)
	t[overTLS].ForceAttemptHTTP2 = true
	t[overTLS].TLSClientConfig = backendTLS()
	return t
}

// close ends the connections that are not in use.
func (t transports) close() {
	for _, transport := range t {
		transport.CloseIdleConnections()
	}
}

// prepareSocket marks a connection so that policies treat it as a connection from outside.
func prepareSocket(_ context.Context, _, _ string, socket syscall.RawConn) error {
	return onSocket(socket, func(fd int) error {
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, api.IngressMark),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lostTimeout.Milliseconds())))
	})
}

func onSocket(socket syscall.RawConn, do func(fd int) error) error {
	var err error
	if controlErr := socket.Control(func(fd uintptr) { err = do(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

// backendTLS accepts any certificate: pods have no names to verify, and the path to them is the
// machine's own bridge.
func backendTLS() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
