package limit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keepAliveIdle and keepAliveInterval detect peers that have disappeared. The kernel sends the
	// probes, which wake no goroutine.
	keepAliveIdle     = time.Minute
	keepAliveInterval = 15 * time.Second
	// shortestPause and longestPause bound the pause between attempts to accept after an error, as
	// in net/http.
	shortestPause = 5 * time.Millisecond
	longestPause  = time.Second
)

// Listener is a TCP listener with a budget. Its connections are *Conn.
type Listener struct {
	budgets  *Budgets
	cfg      Config
	sockets  []*net.TCPListener
	accepted chan net.Conn
	failed   chan error    // errors after which accept cannot work again
	closing  chan struct{} // closed by Close
	close    func() error
	loops    sync.WaitGroup
	journal  journal

	mu        sync.Mutex // guards the fields below
	own       int
	strangers int
	sources   map[netip.Addr][]*Conn // strangers
}

var _ net.Listener = (*Listener)(nil)

// Listen listens on a TCP address ("host:port", as net.Listen) under budget c.
func (b *Budgets) Listen(ctx context.Context, address string, c Config) (*Listener, error) {
	sockets, err := open(ctx, address, c)
	if err != nil {
		return nil, err
	}
	c.Connections = min(c.Connections, b.most())
	l := &Listener{
		budgets: b, cfg: c, sockets: sockets, sources: map[netip.Addr][]*Conn{},
		accepted: make(chan net.Conn), failed: make(chan error, len(sockets)), closing: make(chan struct{}),
		journal: journal{name: c.Name, component: c.Component, address: sockets[0].Addr().String()},
	}
	l.close = sync.OnceValue(l.shut)
	b.add(l)
	for _, s := range sockets {
		l.loops.Go(func() { l.loop(s) })
	}
	return l, nil
}

// open creates the sockets of a listener: one, or with OwnSocket one for strangers and one for
// loopback.
func open(ctx context.Context, address string, c Config) ([]*net.TCPListener, error) {
	config := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveInterval},
		Control:         func(_, _ string, socket syscall.RawConn) error { return prepare(socket, c.Unacknowledged, false) },
	}
	config.SetMultipathTCP(false) // it does not support TCP_USER_TIMEOUT
	first, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	bound := first.Addr().(*net.TCPAddr)
	if !c.OwnSocket || !bound.IP.IsUnspecified() {
		return []*net.TCPListener{first.(*net.TCPListener)}, nil
	}
	// No other process listens on this port: otherwise opening the first would have failed. With
	// SO_REUSEPORT it would have succeeded, so the first is opened without it. The kernel gives a
	// connection to the socket with the more specific address.
	if err := first.Close(); err != nil {
		return nil, fmt.Errorf("close the probe of %s: %w", address, err)
	}
	config.Control = func(_, _ string, socket syscall.RawConn) error { return prepare(socket, c.Unacknowledged, true) }
	loopback := net.IPv4(127, 0, 0, 1)
	if host, _, _ := net.SplitHostPort(address); host == net.IPv6unspecified.String() {
		loopback = net.IPv6loopback
	}
	var sockets []*net.TCPListener
	for _, ip := range []net.IP{bound.IP, loopback} {
		s, err := config.Listen(ctx, "tcp", (&net.TCPAddr{IP: ip, Port: bound.Port}).String())
		if err != nil {
			for _, s := range sockets {
				err = errors.Join(err, s.Close())
			}
			return nil, err
		}
		sockets = append(sockets, s.(*net.TCPListener))
	}
	return sockets, nil
}

// prepare sets options that accepted connections inherit.
func prepare(socket syscall.RawConn, unacknowledged time.Duration, shared bool) error {
	var failed error
	err := socket.Control(func(fd uintptr) {
		if shared {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}
		if failed == nil && unacknowledged > 0 {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacknowledged.Milliseconds()))
		}
	})
	return errors.Join(err, failed)
}

// Accept implements net.Listener. It returns an error after Close, or when accept can never work
// again.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case err := <-l.failed:
		return nil, err
	case <-l.closing:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.sockets[0].Addr() }

// Close implements net.Listener. Accepted connections stay open.
func (l *Listener) Close() error { return l.close() }

func (l *Listener) shut() error {
	close(l.closing)
	var errs []error
	for _, s := range l.sockets {
		errs = append(errs, s.Close())
	}
	l.loops.Wait()
	l.budgets.remove(l)
	return errors.Join(errs...)
}

// loop accepts from one socket until the listener is closed.
func (l *Listener) loop(s *net.TCPListener) {
	pause := shortestPause
	for {
		tcp, err := s.AcceptTCP()
		switch {
		case err == nil:
			pause = shortestPause
			l.journal.accepting()
			l.offer(tcp)
		case errors.Is(err, net.ErrClosed):
			return
		case permanent(err):
			l.failed <- err
			return
		default:
			l.journal.failed(err)
			select {
			case <-l.closing:
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, longestPause)
		}
	}
}

// permanent reports whether an error of accept(2) is about the socket itself. All other errors are
// temporary: the connection was aborted, descriptors or memory are short, or the network had an
// error.
func permanent(err error) bool {
	for _, e := range []syscall.Errno{unix.EBADF, unix.EINVAL, unix.ENOTSOCK, unix.EOPNOTSUPP, unix.EFAULT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// offer passes a connection to a caller of Accept, unless it is over the budget.
func (l *Listener) offer(tcp *net.TCPConn) {
	c := newConn(l, tcp)
	pushedOut, reason := l.admit(c)
	if pushedOut != nil {
		pushedOut.end(Share)
	}
	if reason != "" {
		l.journal.refused(reason, c.source)
		reset(tcp)
		return
	}
	c.begin()
	select {
	case l.accepted <- c:
	case <-l.closing:
		c.Close()
	}
}

// classify returns the source that a connection counts for, and whether that is this machine. The
// kernel drops packets from outside whose source is a loopback address or one of the machine's own.
func classify(tcp *net.TCPConn) (source netip.Addr, own bool) {
	remote, _ := tcp.RemoteAddr().(*net.TCPAddr)
	local, _ := tcp.LocalAddr().(*net.TCPAddr)
	if remote == nil || local == nil { // already reset
		return netip.Addr{}, false
	}
	source = remote.AddrPort().Addr().Unmap()
	if source.IsLoopback() || source == local.AddrPort().Addr().Unmap() {
		return source, true
	}
	if source.Is6() {
		if network, err := source.WithZone("").Prefix(64); err == nil { // a host usually has a whole /64
			source = network.Addr()
		}
	}
	return source, false
}

// admit counts a connection, or returns why it is over the budget. pushedOut is a connection that
// no longer counts and must be ended.
func (l *Listener) admit(c *Conn) (pushedOut *Conn, reason Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.own {
		if l.own >= l.cfg.Own {
			return nil, Full
		}
		l.own++
		c.counted = true
		return nil, ""
	}
	if l.cfg.PerAddress > 0 && len(l.sources[c.source]) >= l.cfg.PerAddress {
		return nil, Address
	}
	if reason = l.take(); reason != "" {
		if pushedOut = l.greediest(len(l.sources[c.source]) + 1); pushedOut == nil {
			return nil, reason
		}
		l.uncount(pushedOut)
		if reason = l.take(); reason != "" { // another listener was faster
			return pushedOut, reason
		}
	}
	c.counted, c.index = true, len(l.sources[c.source])
	l.sources[c.source] = append(l.sources[c.source], c)
	return pushedOut, ""
}

// from lists the connections of sources.
func (l *Listener) from(sources map[netip.Addr]bool) []*Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var conns []*Conn
	for source := range sources {
		conns = append(conns, l.sources[source]...)
	}
	return conns
}

// take counts a stranger, or returns which budget is used up. The caller holds mu.
func (l *Listener) take() Reason {
	if l.strangers >= l.cfg.Connections {
		return Full
	}
	if !l.budgets.take() {
		return Descriptors
	}
	l.strangers++
	return ""
}

// greediest returns a connection of the source that holds the most, if that is more than held. The
// caller holds mu.
func (l *Listener) greediest(held int) *Conn {
	var last *Conn
	for _, conns := range l.sources {
		if len(conns) > held {
			held, last = len(conns), conns[len(conns)-1]
		}
	}
	return last
}

// release undoes admit. It does nothing for a connection that was pushed out.
func (l *Listener) release(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.counted {
		l.uncount(c)
	}
}

// uncount removes a connection from the counts. The caller holds mu.
func (l *Listener) uncount(c *Conn) {
	c.counted = false
	if c.own {
		l.own--
		return
	}
	conns := l.sources[c.source]
	last := len(conns) - 1
	conns[c.index] = conns[last]
	conns[c.index].index = c.index
	conns[last] = nil
	if l.sources[c.source] = conns[:last]; last == 0 {
		delete(l.sources, c.source)
	}
	l.strangers--
	l.budgets.give()
}

// counts returns the numbers of open connections, by class.
func (l *Listener) counts() (own, strangers int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own, l.strangers
}

// reset closes a connection so that the kernel keeps no state of it.
func reset(tcp *net.TCPConn) {
	_ = tcp.SetLinger(0)
	_ = tcp.Close()
}
