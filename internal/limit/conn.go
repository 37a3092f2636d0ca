package limit

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Conn is a connection that counts in a budget until Close. Otherwise it is a *net.TCPConn, so
// CloseWrite, splice and socket options work.
type Conn struct {
	*net.TCPConn
	listener *Listener
	source   netip.Addr
	own      bool
	close    func() error
	start    *time.Timer // ends a client that is silent for too long; nil without a limit

	// counted and index, the position in the list of the source, are guarded by the listener's mu.
	counted bool
	index   int

	// begun and records belong to the reader, which is one goroutine at a time, as in any protocol.
	begun   bool
	records records
}

func newConn(l *Listener, tcp *net.TCPConn) *Conn {
	c := &Conn{TCPConn: tcp, listener: l, begun: l.cfg.Start == 0}
	c.source, c.own = classify(tcp)
	c.close = sync.OnceValue(func() error {
		err := tcp.Close()
		l.release(c)
		return err
	})
	return c
}

// begin starts the time limit for the client's first data.
func (c *Conn) begin() {
	if limit := c.listener.cfg.Start; limit > 0 {
		c.start = time.AfterFunc(limit, func() { c.end(Silent) })
	}
}

// end resets the connection, also while other goroutines use it.
func (c *Conn) end(reason Reason) {
	c.listener.journal.refused(reason, c.source)
	c.reset()
}

func (c *Conn) reset() {
	_ = c.SetLinger(0)
	_ = c.close()
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if !c.begun && n > 0 && (!c.listener.cfg.TLS || c.records.application(p[:n])) {
		c.begun = true
		c.start.Stop()
	}
	return n, err
}

// WriteTo implements io.WriterTo, which io.Copy prefers to Read: it uses splice once the client has
// begun.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	buffer := make([]byte, 4<<10)
	var written int64
	for !c.begun {
		n, err := c.Read(buffer)
		if n > 0 {
			m, err := w.Write(buffer[:n])
			written += int64(m)
			if err != nil {
				return written, err
			}
		}
		if err == io.EOF {
			return written, nil
		}
		if err != nil {
			return written, err
		}
	}
	n, err := c.TCPConn.WriteTo(w)
	return written + n, err
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	if c.start != nil {
		c.start.Stop()
	}
	return c.close()
}

// records tracks the headers of TLS records (RFC 8446, section 5.1): type, version and length in 5
// bytes.
type records struct {
	header [5]byte
	have   int // bytes of the header read so far
	body   int // remaining bytes of the record
}

// applicationData is the type of records with the protocol's content. In TLS 1.3 the end of the
// client's handshake has this type too.
const applicationData = 23

// application reports whether p, the next bytes of the stream, contains the beginning of a record
// of application data.
func (r *records) application(p []byte) bool {
	for len(p) > 0 {
		if r.body > 0 {
			n := min(r.body, len(p))
			r.body -= n
			p = p[n:]
			continue
		}
		r.header[r.have] = p[0]
		r.have++
		p = p[1:]
		if r.header[0] == applicationData {
			return true
		}
		if r.have == len(r.header) {
			r.have, r.body = 0, int(r.header[3])<<8|int(r.header[4])
		}
	}
	return false
}
