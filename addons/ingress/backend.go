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

// protocol is how a backend is spoken to, by its Service port's appProtocol.
type protocol int

const (
	plain   protocol = iota // HTTP/1.1
	h2c                     // HTTP/2 without TLS
	overTLS                 // HTTP/1.1 or 2, as they agree
)

const (
	// connectTimeout is for a pod of this node, which answers within milliseconds or, behind a policy, never.
	connectTimeout = 5 * time.Second
	// lostTimeout is how long a pod may leave data unread before its connection ends: a policy that forbids it lets
	// no packet through, and nothing else would tell.
	lostTimeout = 20 * time.Second
	// handshakeTimeout is for a backend that speaks TLS.
	handshakeTimeout = 10 * time.Second
	// asideFor is how long an endpoint that could not be connected to is asked last.
	asideFor = 10 * time.Second
	// maxTries of different endpoints for one request, so that it ends within 15 s whatever happens.
	maxTries = 3
	// Connections to endpoints that are kept open for the next request, and how long.
	keptForEach, kept, keptFor = 256, 1024, time.Minute
	// maxAnswerHeader is what the header of an answer may have.
	maxAnswerHeader = 256 << 10
	// Over HTTP/2 a silent connection is asked whether it lives.
	pingAfter, pingTimeout = 30 * time.Second, 15 * time.Second
)

var errNoEndpoint = errors.New("the Service has no ready endpoint")

// endpoint is an address of a pod. It stays the same as routes change.
type endpoint struct {
	address string
	aside   atomic.Int64 // until then (Unix time in ns) others are asked first
	kept    keptConnections
}

// backend is a Service's port. It implements http.RoundTripper, to one of its endpoints.
type backend struct {
	name      string // NAMESPACE/SERVICE:PORT
	protocol  protocol
	endpoints []*endpoint
	next      atomic.Uint32
	direct    direct
	transport *http.Transport
	handler   http.Handler
}

// RoundTrip asks the endpoints in turn. One that cannot be connected to has not had the request: another gets it.
func (b *backend) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(b.endpoints) == 0 {
		return nil, errNoEndpoint
	}
	if r.Body != nil && r.Body != http.NoBody {
		// A transport closes the body of what it could not send. The proxy closes it at the end.
		r.Body = io.NopCloser(r.Body)
	}
	if under, ok := r.Context().Value(requestKey{}).(*request); ok {
		under.work.Pause() // what follows waits for the pod
	}
	turn := b.next.Add(1)
	for try := range uint32(maxTries) {
		e := b.pick(turn + try)
		r.URL.Host = e.address
		response, err := b.ask(r, e)
		if !unconnected(err) || r.Context().Err() != nil { // of a client that left, nobody knows whether the endpoint answers
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

// pick is the endpoint whose turn it is, or the next that was not put aside.
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

// unconnected says that nothing of the request has left.
func unconnected(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// transports are the connections to all endpoints, by protocol.
type transports [overTLS + 1]*http.Transport

func newTransports() transports {
	dialer := &net.Dialer{Timeout: connectTimeout, ControlContext: prepareSocket}
	newOne := func() *http.Transport {
		return &http.Transport{
			DialContext: dialer.DialContext, TLSHandshakeTimeout: handshakeTimeout,
			MaxIdleConnsPerHost: keptForEach, MaxIdleConns: kept, IdleConnTimeout: keptFor,
			MaxResponseHeaderBytes: maxAnswerHeader, ExpectContinueTimeout: time.Second,
			DisableCompression: true, // what the client asked for is what it gets
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

// prepareSocket has policies judge the connection as one from outside.
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

// backendTLS takes any certificate: pods have no names to verify, and are reached over the machine's own bridge.
func backendTLS() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
