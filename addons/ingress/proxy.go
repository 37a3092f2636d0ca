package ingress

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mote-k8s/mote/internal/fair"
)

// bodyTimeout is the time that a client may pause while it sends the body of a request. minBodyRate
// is the minimum rate for a body of known length after that time, in bytes a second. The waits for
// such a body may sum up to bodyTimeout and a second for each minBodyRate bytes that were read.
const (
	bodyTimeout = time.Minute
	minBodyRate = 512
)

// copySize is the size of the buffers between backend and client.
const copySize = 32 << 10

// proxy answers all requests. Each request uses the table that is active when it arrives.
type proxy struct {
	routes     atomic.Pointer[table]
	transports transports
	buffers    buffers
	// httpPort and httpsPort are the ports that clients see in redirects, and backends in
	// X-Forwarded-Port.
	httpPort, httpsPort string
	certificate         *tls.Certificate // for hosts that have none
	bounds              bounds
	gate, refusals      *fair.Gate // count bytes
	reads               *fair.Gate
	source              func(remote, local net.Addr) netip.Addr
}

func newProxy(httpPort, httpsPort int) (*proxy, error) {
	p := &proxy{transports: newTransports(), httpPort: strconv.Itoa(httpPort), httpsPort: strconv.Itoa(httpsPort), source: fair.Source}
	p.setBounds(boundsFor(memoryLimit()))
	p.buffers.New = func() any { return new([copySize]byte) }
	p.routes.Store(newTable())
	var err error
	p.certificate, err = newDefaultCertificate()
	return p, err
}

func (p *proxy) setBounds(b bounds) {
	p.bounds = b
	p.gate = fair.New(fair.Config{
		Component: Name, Work: "requests", Running: fair.Processors(), Total: b.memory, PerSource: b.memoryPerSource,
	})
	p.reads = newReadGate()
	p.refusals = fair.New(fair.Config{
		Component: Name, Work: "requests without an answer", Total: refusalMemory, PerSource: refusalMemoryPerSource,
	})
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer recovered(w)
	from, _ := r.Context().Value(clientKey{}).(*client)
	if from == nil {
		from = &client{}
	}
	admitted := p.admit(w, r, from)
	if admitted == nil {
		return
	}
	defer admitted.work.End()
	admitted.work.Run()
	r = r.WithContext(context.WithValue(r.Context(), requestKey{}, admitted))
	w, timed := p.bounds.watch(w, r, admitted)
	if timed != nil {
		defer func() { from.count(r, timed.sent) }()
	}
	p.answer(w, r)
	if timed != nil {
		admitted.work.Pause()
		timed.finish()
	}
}

// answer answers a request that was admitted.
func (p *proxy) answer(w http.ResponseWriter, r *http.Request) {
	route := p.routes.Load().find(hostOf(r.Host), r.URL.Path)
	switch {
	case r.Method == http.MethodConnect:
		http.Error(w, "405 this is no forward proxy", http.StatusMethodNotAllowed)
	// "http:admin" has no path to check, and some servers treat it as /admin.
	case r.URL.Opaque != "":
		http.Error(w, "400 the request's target is no path", http.StatusBadRequest)
	case route == nil:
		http.Error(w, "404 no Ingress has this host and path", http.StatusNotFound)
	case route.toHTTPS && r.TLS == nil:
		target := *r.URL
		target.Scheme, target.Host = "https", hostOf(r.Host)
		if p.httpsPort != "443" {
			target.Host += ":" + p.httpsPort
		}
		// 308 preserves method and body.
		http.Redirect(w, r, target.String(), http.StatusPermanentRedirect)
	default:
		route.backend.handler.ServeHTTP(w, r)
	}
}

// recovered turns a panic into an answer and a log line. One request must not end the cluster.
func recovered(w http.ResponseWriter) {
	switch problem := recover(); problem {
	case nil:
	case http.ErrAbortHandler: // the backend's answer broke off, so this one does too
		panic(problem)
	default:
		slog.Error("a request panicked", "component", Name, "panic", problem, "stack", string(debug.Stack()))
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// serve makes the handler of a backend.
func (p *proxy) serve(b *backend) {
	b.transport = p.transports[b.protocol]
	b.direct = direct{b.transport.DialContext}
	b.handler = &httputil.ReverseProxy{
		Transport: b, BufferPool: &p.buffers, ErrorHandler: answerError,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		Rewrite:  func(r *httputil.ProxyRequest) { p.rewrite(r, b.protocol) },
	}
}

// rewrite adds headers that identify the client to the backend, and discards the client's own
// claims about that. Everything else passes unchanged.
func (p *proxy) rewrite(r *httputil.ProxyRequest, to protocol) {
	r.Out.URL.Scheme, r.Out.URL.RawQuery = "http", r.In.URL.RawQuery
	if to == overTLS {
		r.Out.URL.Scheme = "https"
	}
	header := r.Out.Header
	for name := range header {
		// WSGI, CGI and PHP treat X_Forwarded_For as the same header.
		same := http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
		if strings.HasPrefix(same, "X-Forwarded-") || same == "X-Real-Ip" {
			delete(header, name)
		}
	}
	r.SetXForwarded()
	port := p.httpPort
	if r.In.TLS != nil {
		port = p.httpsPort
	}
	header["X-Forwarded-Port"], header["X-Real-Ip"] = []string{port}, header["X-Forwarded-For"]
	if strings.Contains(strings.ToLower(header.Get("Upgrade")), "h2c") {
		// After an upgrade, requests would follow that the proxy does not check. A server may
		// always continue without the upgrade; RFC 9113, 3.1, has deprecated it.
		header.Del("Upgrade")
		header.Del("Connection")
		header.Del("Http2-Settings")
	}
}

func answerError(w http.ResponseWriter, r *http.Request, err error) {
	status, text := http.StatusBadGateway, "502 the Service did not answer"
	under, _ := r.Context().Value(requestKey{}).(*request)
	switch {
	case under != nil && under.late.Load():
		status, text = http.StatusRequestTimeout, "408 the rest of the request did not come in time"
	case errors.Is(err, context.Canceled):
		// The client is gone, or has closed its half of the connection and would take silence for
		// an empty 200.
		panic(http.ErrAbortHandler)
	case errors.Is(err, errNoEndpoint):
		status, text = http.StatusServiceUnavailable, "503 the Service has no ready pod"
	case timedOut(err):
		status, text = http.StatusGatewayTimeout, "504 the Service did not answer in time"
	}
	slog.Debug("a request was not answered", "component", Name, "host", r.Host, "path", r.URL.Path, "err", err)
	http.Error(w, text, status)
}

// getCertificate implements tls.Config.GetCertificate.
func (p *proxy) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	found := p.certificate
	if slices.Contains(hello.SupportedProtos, "h2") {
		takeTurns(hello.Conn)
	}
	if c := p.routes.Load().certificate(hostOf(hello.ServerName)); c != nil {
		found = c
	}
	key, ok := found.PrivateKey.(crypto.Signer)
	if !ok {
		return found, nil
	}
	inTurn := *found
	inTurn.PrivateKey = signer{key, p.gate, p.source(hello.Conn.RemoteAddr(), hello.Conn.LocalAddr())}
	return &inTurn, nil
}

// buffers implements httputil.BufferPool.
type buffers struct{ sync.Pool }

func (b *buffers) Get() []byte       { return b.Pool.Get().(*[copySize]byte)[:] }
func (b *buffers) Put(buffer []byte) { b.Pool.Put((*[copySize]byte)(buffer)) }
