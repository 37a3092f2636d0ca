package ingress

import (
	"bytes"
	"math"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/mote-k8s/mote/internal/fair"
	"github.com/mote-k8s/mote/internal/limit"
)

// newReadGate returns the gate for what connections of HTTP/2 have read.
func newReadGate() *fair.Gate {
	return fair.New(fair.Config{
		Component: Name, Work: "reads", Running: fair.Processors(), Total: math.MaxInt64, PerSource: math.MaxInt64,
	})
}

// turnListener accepts connections that can take turns.
type turnListener struct {
	net.Listener
	gate   *fair.Gate
	source func(remote, local net.Addr) netip.Addr
}

// Accept implements net.Listener.
func (l turnListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if counted, ok := conn.(*limit.Conn); ok {
		return &turnConn{Conn: counted, gate: l.gate, source: l.source(conn.RemoteAddr(), conn.LocalAddr())}, nil
	}
	return conn, err
}

// turnConn is a connection whose reader computes in its source's turn if it speaks HTTP/2. Such a
// connection costs processor time for frames that are no request: headers are decompressed, streams
// are opened and reset (CVE-2023-44487). net/http handles the frames of a connection between two
// reads, so the turn begins when a read returns and ends with the next read. Connections of HTTP/1
// take no turns here, because nearly all of their work is a request, which has its own turn.
type turnConn struct {
	*limit.Conn
	gate   *fair.Gate
	source netip.Addr

	turns   atomic.Bool // it speaks HTTP/2
	started bool        // the reader's: the first bytes were seen

	mu              sync.Mutex // guards what follows
	reading, closed bool
	work            fair.Work // the reader's, or with mu held and reading not set anybody's
	begun           bool
}

// takeTurns makes the reader of conn take turns. It is for clients that offer HTTP/2 in a TLS
// handshake.
func takeTurns(conn net.Conn) {
	if c, ok := conn.(*turnConn); ok {
		c.turns.Store(true)
	}
}

// prefaceStart begins each connection of HTTP/2 without TLS (RFC 9113, 3.4).
const prefaceStart = "PRI "

// Read implements net.Conn.
func (c *turnConn) Read(p []byte) (int, error) {
	if !c.turns.Load() {
		n, err := c.Conn.Read(p)
		if !c.started && n > 0 {
			c.started = true
			if bytes.HasPrefix(p[:n], []byte(prefaceStart)) {
				c.turns.Store(true)
			}
		}
		return n, err
	}
	c.mu.Lock()
	c.reading = true
	c.mu.Unlock()
	c.work.Pause()
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.begun = c.begun || c.gate.Begin(&c.work, c.source, 1)
		if c.begun {
			c.work.Run()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = false
	if c.closed || err != nil {
		c.work.End()
		c.begun = false
	}
	return n, err
}

// Close implements net.Conn.
func (c *turnConn) Close() error {
	err := c.Conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if !c.reading { // a reader ends the work itself
		c.work.End()
		c.begun = false
	}
	return err
}
