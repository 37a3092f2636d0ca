package ingress

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// direct sends a request to an endpoint over HTTP/1.1 in the goroutine of the request.
// http.Transport has two goroutines for each connection, which cost a third of all processor time
// when requests are small. direct handles requests that have no body and can be repeated. Most
// requests are of this kind, and they need no more than this.
type direct struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// suits reports whether direct can send a request.
func (direct) suits(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && (r.Body == nil || r.Body == http.NoBody) &&
		r.Header["Upgrade"] == nil
}

// roundTrip sends the request over a kept connection, and over a new one if the endpoint has closed
// the kept ones.
func (d direct) roundTrip(r *http.Request, e *endpoint) (*http.Response, error) {
	for {
		c := e.kept.take()
		reused := c != nil
		if reused && !c.quiet() {
			c.Close()
			continue
		}
		if !reused {
			conn, err := d.dial(r.Context(), "tcp", e.address)
			if err != nil {
				return nil, err
			}
			c = newConnection(conn, &e.kept)
		}
		response, silent, err := c.ask(r)
		switch {
		case err == nil:
			return response, nil
		case r.Context().Err() != nil:
			return nil, r.Context().Err()
		case !reused || !silent:
			return nil, fmt.Errorf("ask %s: %w", e.address, err)
		case timedOut(err):
			e.kept.drop() // a policy forbids them all: each would take as long
		}
	}
}

func timedOut(err error) bool {
	var network net.Error
	return errors.As(err, &network) && network.Timeout()
}

// connection is a connection to an endpoint. It carries one request at a time.
type connection struct {
	net.Conn
	home    *keptConnections
	limit   io.LimitedReader // limits the bytes read ahead
	reader  *bufio.Reader
	writer  *bufio.Writer
	expires time.Time
}

func newConnection(conn net.Conn, home *keptConnections) *connection {
	c := &connection{Conn: conn, home: home, limit: io.LimitedReader{R: conn}, writer: bufio.NewWriter(conn)}
	c.reader = bufio.NewReader(&c.limit)
	return c
}

// quiet reports whether the endpoint has neither closed the connection nor sent unrequested data.
// Some endpoints send such data after HEAD or when they stop waiting. The next request on the
// connection belongs to another client and would take that data for its answer.
func (c *connection) quiet() bool {
	conn, ok := c.Conn.(syscall.Conn)
	if !ok {
		return true // it is not a socket; only a request can show its state
	}
	socket, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var next [1]byte
	var peeked error
	err = socket.Read(func(fd uintptr) bool {
		_, _, peeked = unix.Recvfrom(int(fd), next[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return true
	})
	return err == nil && errors.Is(peeked, unix.EAGAIN)
}

// ask sends a request and reads the header of its answer. silent is true if the endpoint has sent
// nothing: it closed the connection earlier. After an error the connection is closed.
func (c *connection) ask(r *http.Request) (response *http.Response, silent bool, err error) {
	stop := context.AfterFunc(r.Context(), func() { c.Close() })
	defer func() {
		if err != nil {
			stop()
			c.Close()
		}
	}()
	if err = r.Write(c.writer); err == nil {
		err = c.writer.Flush()
	}
	if err != nil {
		return nil, true, err
	}
	c.limit.N = maxAnswerHeader
	if _, err = c.reader.Peek(1); err != nil {
		return nil, true, err
	}
	for {
		if response, err = http.ReadResponse(c.reader, r); err != nil {
			return nil, false, err
		}
		if response.StatusCode >= http.StatusOK {
			break
		}
		if response.StatusCode == http.StatusSwitchingProtocols {
			return nil, false, fmt.Errorf("the answer is 101, which was not asked for")
		}
	}
	c.limit.N = math.MaxInt64
	body := &answerBody{ReadCloser: response.Body, connection: c, keep: !response.Close, stop: stop}
	if response.Body == http.NoBody || response.ContentLength == 0 {
		body.finish(true)
	}
	response.Body = body
	return response, false, nil
}

// answerBody returns its connection to the kept ones after the body was read, and closes it
// otherwise.
type answerBody struct {
	io.ReadCloser
	connection *connection // nil after it was returned
	keep       bool
	stop       func() bool
}

func (b *answerBody) Read(buffer []byte) (int, error) {
	n, err := b.ReadCloser.Read(buffer)
	if err != nil {
		b.finish(err == io.EOF)
	}
	return n, err
}

func (b *answerBody) Close() error {
	b.finish(false)
	return nil
}

func (b *answerBody) finish(whole bool) {
	if b.connection == nil {
		return
	}
	c := b.connection
	b.connection = nil
	if !b.stop() || !whole || !b.keep || c.reader.Buffered() > 0 || !c.home.put(c) {
		c.Close()
	}
}

// keptConnections holds the connections to an endpoint that have no request.
type keptConnections struct {
	mu    sync.Mutex
	idle  []*connection // the most recent one last
	timer *time.Timer   // nil when no connection is kept
	gone  bool          // the endpoint is in no table any more
}

// take returns the most recent connection, or nil if there is none.
func (k *keptConnections) take() *connection {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.idle) == 0 {
		return nil
	}
	c := k.idle[len(k.idle)-1]
	k.idle = k.idle[:len(k.idle)-1]
	return c
}

// put keeps a connection unless enough are kept already. It reports whether it kept it.
func (k *keptConnections) put(c *connection) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.gone || len(k.idle) >= keptForEach {
		return false
	}
	c.expires = time.Now().Add(keptFor)
	k.idle = append(k.idle, c)
	if k.timer == nil {
		k.timer = time.AfterFunc(keptFor, k.expire)
	}
	return true
}

// expire closes the connections that were unused for too long.
func (k *keptConnections) expire() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	fresh := slices.IndexFunc(k.idle, func(c *connection) bool { return c.expires.After(now) })
	if fresh < 0 {
		fresh = len(k.idle)
	}
	closeAll(k.idle[:fresh])
	if k.idle = slices.Delete(k.idle, 0, fresh); len(k.idle) == 0 {
		k.timer = nil
		return
	}
	k.timer.Reset(k.idle[0].expires.Sub(now))
}

// close closes the connections of an endpoint that is no longer used.
func (k *keptConnections) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gone = true
	closeAll(k.idle)
	k.idle = nil
	if k.timer != nil {
		k.timer.Stop()
	}
}

// drop closes all connections that are kept now.
func (k *keptConnections) drop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	closeAll(k.idle)
	k.idle = nil
}

func closeAll(all []*connection) {
	for _, c := range all {
		c.Close()
	}
}
