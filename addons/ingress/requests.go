package ingress

import (
	"context"
	"crypto"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/fair"
)

const (
	// requestMemory is the memory of a running request besides its header: stacks, buffers for its
	// answer, a connection to the pod. bodyMemory is the memory that its body may take over HTTP/2
	// while the pod does not read. upgradeMemory is the additional memory of a WebSocket. All are
	// in bytes.
	requestMemory, bodyMemory, upgradeMemory = 64 << 10, streamWindow, 64 << 10
	// refusalMemory limits the memory of all refusals that are not sent yet, and
	// refusalMemoryPerSource that of one source. Above the limit connections are closed, because
	// their clients do not read.
	refusalMemory, refusalMemoryPerSource = 16 << 20, 4 << 20
	// retryAfter is the number of seconds after which a refused client may ask again.
	retryAfter = "1"
	// maxTakenBack is the number of requests that a client may cancel on a connection before their
	// answers begin, if they are more than half of its requests. More than that is the flood of
	// CVE-2023-44487.
	maxTakenBack = 200
)

// bounds holds the limits of both ports together. They depend on the memory available.
type bounds struct {
	connections, connectionsPerSource int // of each port
	memory, memoryPerSource           int64
	// body is the time that a client may pause in a body; sent is the time that it may leave an
	// answer unread.
	body, sent time.Duration
}

// boundsFor returns the limits for a process with a memory limit, which is half of the machine's
// memory (internal/memory). A limit of 512 MiB gives 2,048 connections and 32 MiB for requests; 4
// GiB and more give 4,096 and 256 MiB.
func boundsFor(limit uint64) bounds {
	b := bounds{body: bodyTimeout, sent: sentTimeout}
	b.connections = int(min(max(limit/(256<<10), 1024), 4096))
	b.connectionsPerSource = b.connections / 8
	b.memory = int64(min(max(limit/16, 32<<20), 256<<20))
	b.memoryPerSource = max(b.memory/4, 16<<20)
	return b
}

// memoryLimit returns the memory limit of the process, or half of the machine's memory if there is
// none.
func memoryLimit() uint64 {
	limit := uint64(debug.SetMemoryLimit(-1))
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		limit = min(limit, uint64(info.Totalram)*uint64(info.Unit)/2)
	}
	return limit
}

// client is a connection from outside.
type client struct {
	source   netip.Addr
	conn     net.Conn
	requests atomic.Int64
	// takenBack counts the requests that the client cancelled before their answers began.
	takenBack atomic.Int64
}

type clientKey struct{}

// withClient implements http.Server.ConnContext.
func (p *proxy) withClient(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, clientKey{}, &client{source: p.source(conn.RemoteAddr(), conn.LocalAddr()), conn: conn})
}

// request is a request that is running.
type request struct {
	work fair.Work
	late atomic.Bool // its body did not arrive in time
}

type requestKey struct{}

// memoryOf returns the memory that a request takes while it runs, in bytes.
func memoryOf(r *http.Request) int64 {
	header := len(r.RequestURI) + len(r.Host)
	for name, values := range r.Header {
		for _, value := range values {
			header += len(name) + len(value)
		}
	}
	n := int64(requestMemory + 2*header) // the backend's request has a copy
	if r.ProtoMajor == 2 && r.ContentLength != 0 {
		n += bodyMemory
	}
	if r.Header["Upgrade"] != nil {
		n += upgradeMemory
	}
	return n
}

// admit admits a request if the limits allow it. Otherwise it answers 503, or closes the connection
// if the client does not read such answers.
func (p *proxy) admit(w http.ResponseWriter, r *http.Request, from *client) *request {
	admitted := &request{}
	size := memoryOf(r)
	if p.gate.Begin(&admitted.work, from.source, size) {
		return admitted
	}
	var refusal fair.Work
	if !p.refusals.Begin(&refusal, from.source, size) {
		from.close()
		panic(http.ErrAbortHandler)
	}
	defer refusal.End()
	w.Header().Set("Retry-After", retryAfter)
	http.Error(w, "503 too many requests are under way", http.StatusServiceUnavailable)
	_ = http.NewResponseController(w).Flush() // it counts until it is sent
	return nil
}

func (c *client) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
}

// count records how a request ended. It closes a connection whose client cancels most of its
// requests.
func (c *client) count(r *http.Request, answered bool) {
	all := c.requests.Add(1)
	if !answered && r.Context().Err() != nil && r.ProtoMajor == 2 {
		if back := c.takenBack.Add(1); back >= maxTakenBack && 2*back > all {
			c.close()
		}
	}
}

// timedBody ends a request whose client stops sending the body, or sends a body of known length too
// slowly.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
	request *request
	limit   time.Duration // limits one pause
	sized   bool          // its length is known
	waited  time.Duration // the sum of the waits in reads
	read    int64
	free    atomic.Bool // pauses are not limited
}

// Read implements io.Reader.
func (b *timedBody) Read(buffer []byte) (int, error) {
	limit := b.limit
	if b.sized {
		limit = min(limit, b.limit+time.Duration(b.read/minBodyRate)*time.Second-b.waited)
	}
	started := time.Now()
	if !b.free.Load() {
		_ = b.control.SetReadDeadline(started.Add(limit))
	}
	n, err := b.ReadCloser.Read(buffer)
	b.waited += time.Since(started)
	b.read += int64(n)
	if err != nil {
		if timedOut(err) {
			b.request.late.Store(true)
			err = os.ErrDeadlineExceeded
		}
		// The server continues to read, to notice when the client leaves.
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// release removes the limit on pauses, also for a read that is waiting.
func (b *timedBody) release() {
	b.free.Store(true)
	_ = b.control.SetReadDeadline(time.Time{})
}

// timedWriter is an answer over HTTP/2 with a limit on the time that the client takes to receive
// it. A client may keep the window of a stream closed for ever while its connection is healthy
// otherwise.
type timedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	limit   time.Duration
	begun   func() // called once, when the answer begins; nil afterwards
	sent    bool   // the answer has begun
	wrote   bool   // the answer has a body
}

// WriteHeader implements http.ResponseWriter.
func (t *timedWriter) WriteHeader(status int) {
	if status >= http.StatusOK {
		t.begin()
	}
	t.ResponseWriter.WriteHeader(status)
}

func (t *timedWriter) begin() {
	t.sent = true
	if t.begun != nil {
		t.begun()
		t.begun = nil
	}
}

// Write implements http.ResponseWriter.
func (t *timedWriter) Write(part []byte) (int, error) {
	t.begin()
	t.wrote = true
	_ = t.control.SetWriteDeadline(time.Now().Add(t.limit))
	n, err := t.ResponseWriter.Write(part)
	_ = t.control.SetWriteDeadline(time.Time{})
	return n, err
}

// FlushError implements the interface that http.ResponseController uses.
func (t *timedWriter) FlushError() error {
	t.begin()
	_ = t.control.SetWriteDeadline(time.Now().Add(t.limit))
	err := t.control.Flush()
	_ = t.control.SetWriteDeadline(time.Time{})
	return err
}

// finish sends the rest of the body while the request still counts. The server ends an answer
// without a body: its header has to end the stream, as gRPC requires when a call fails at once.
func (t *timedWriter) finish() {
	if t.wrote {
		_ = t.FlushError()
	}
}

// Unwrap returns the underlying writer for http.ResponseController.
func (t *timedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// watch puts time limits on the data that the client sends and receives.
func (b bounds) watch(w http.ResponseWriter, r *http.Request, admitted *request) (http.ResponseWriter, *timedWriter) {
	control := http.NewResponseController(w)
	var body *timedBody
	if r.ContentLength != 0 {
		body = &timedBody{ReadCloser: r.Body, control: control, request: admitted, limit: b.body, sized: r.ContentLength > 0}
		r.Body = body
	}
	if r.ProtoMajor != 2 {
		return w, nil // the kernel ends a connection that is not read
	}
	timed := &timedWriter{ResponseWriter: w, control: control, limit: b.sent}
	// A gRPC call may be a stream in both directions that is silent for hours.
	if body != nil && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		timed.begun = body.release
	}
	return timed, timed
}

// signer signs for a TLS handshake in its client's turn. A signature takes more processor time than
// a small request.
type signer struct {
	crypto.Signer
	gate   *fair.Gate
	source netip.Addr
}

// Sign implements crypto.Signer.
func (s signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	var work fair.Work
	if !s.gate.Begin(&work, s.source, 1) {
		return nil, errors.New("too many requests are under way")
	}
	defer work.End()
	work.Run()
	return s.Signer.Sign(rand, digest, opts)
}
