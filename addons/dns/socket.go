package dns

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"github.com/mote-k8s/mote/internal/fair"
	"github.com/mote-k8s/mote/internal/limit"
)

const (
	// maxQueries and maxQueriesPerSource limit concurrent queries. Most of a query's memory is the
	// stack of its goroutine, 16 KiB, so all queries together take some 40 MB. A pod that asks
	// without a pause has some 10 running queries, and more if its upstream servers do not answer.
	maxQueries, maxQueriesPerSource = 2048, 512
	// maxUnread is the number of UDP queries that may be read from a socket and not yet be
	// admitted. Each is a goroutine that is ready to run. Further queries wait in the kernel.
	maxUnread = 64
	// maxConnections limits the TCP connections of each listening address, and
	// maxConnectionsPerSource those of one source. Clients ask over UDP first, and pods that keep
	// connections, such as caches, have a few.
	maxConnections, maxConnectionsPerSource = 1024, 128
	// maxOnConnection is the number of queries after which a connection is closed. Clients connect
	// again (RFC 7766, 6.2.3).
	maxOnConnection = 128
	// readTimeout limits the wait for the first query on a connection. writeTimeout limits the time
	// that a client takes to receive an answer; the value is upstream's.
	readTimeout, writeTimeout = 3 * time.Second, 5 * time.Second
	// pollInterval is the interval at which a quiet UDP socket is checked. A stop does not wait for
	// it.
	pollInterval = time.Hour
)

// socket is an address where DNS is served over UDP and TCP.
type socket struct {
	gate     *fair.Gate
	packets  net.PacketConn
	listener net.Listener
	udp, tcp *dns.Server
	current  atomic.Pointer[served]
	unread   chan struct{}
	started  bool // guarded by front.mu
	running  sync.WaitGroup
}

// served is the CoreDNS server that answers on a socket, with its generation.
type served struct {
	server     *dnsserver.Server
	generation *generation
}

func listenAddress(host, port string) string { return transportPrefix + net.JoinHostPort(host, port) }

// openSocket listens on the address over UDP and TCP. It reads nothing before serve.
func openSocket(ctx context.Context, address string, gate *fair.Gate, budgets *limit.Budgets) (*socket, error) {
	s := &socket{gate: gate, unread: make(chan struct{}, maxUnread)}
	var config net.ListenConfig
	var err error
	if s.packets, err = config.ListenPacket(ctx, "udp", address); err != nil {
		return nil, fmt.Errorf("serve DNS: %w", err)
	}
	listener, err := budgets.Listen(ctx, address, limit.Config{
		Component: Name, Name: Name, Connections: maxConnections, PerAddress: maxConnectionsPerSource, Own: maxConnections,
		Unacknowledged: writeTimeout,
	})
	if err != nil {
		_ = s.packets.Close()
		return nil, fmt.Errorf("serve DNS: %w", err)
	}
	s.listener = bounded{listener}
	s.udp = &dns.Server{
		PacketConn: s.packets, Handler: dns.HandlerFunc(s.answerPacket), ReadTimeout: pollInterval,
		DecorateReader: func(r dns.Reader) dns.Reader { return admitting{r, s} },
		MsgAcceptFunc:  s.acceptPacket, MsgInvalidFunc: func([]byte, error) { <-s.unread },
	}
	s.tcp = &dns.Server{
		Listener: s.listener, Handler: dns.HandlerFunc(s.answerConnection), MaxTCPQueries: maxOnConnection,
		ReadTimeout: readTimeout, IdleTimeout: s.idleTimeout, MsgAcceptFunc: accept,
	}
	return s, nil
}

// idleTimeout returns the value of the Corefile, or CoreDNS' default.
func (s *socket) idleTimeout() time.Duration { return s.current.Load().server.IdleTimeout }

// serve passes queries to by from now on. It returns when both listeners read.
func (s *socket) serve(by *served) {
	s.current.Store(by)
	if s.started {
		return
	}
	s.started = true
	var starting sync.WaitGroup
	for _, server := range []*dns.Server{s.udp, s.tcp} {
		starting.Add(1)
		server.NotifyStartedFunc = starting.Done
		s.running.Go(func() { _ = server.ActivateAndServe() })
	}
	starting.Wait()
}

// close frees the address and waits up to drainTimeout for running queries.
func (s *socket) close() {
	if !s.started {
		_ = s.packets.Close()
		_ = s.listener.Close()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	var closing sync.WaitGroup
	closing.Go(func() { _ = s.udp.ShutdownContext(ctx) })
	closing.Go(func() { _ = s.tcp.ShutdownContext(ctx) })
	closing.Wait()
}

// admitting is the reader of a UDP socket. It drops queries of a source that has enough running
// queries, before they cost more than the read. A client that gets no answer asks again later.
type admitting struct {
	dns.Reader
	socket *socket
}

// ReadUDP implements dns.Reader.
func (a admitting) ReadUDP(conn *net.UDPConn, timeout time.Duration) ([]byte, *dns.SessionUDP, error) {
	for {
		message, session, err := a.Reader.ReadUDP(conn, timeout)
		if err == nil && a.socket.gate.Full(fair.Source(session.RemoteAddr(), conn.LocalAddr()), 1) {
			continue
		}
		if err == nil {
			a.socket.unread <- struct{}{} // taken out by the handler, acceptPacket or MsgInvalidFunc
		}
		return message, session, err
	}
}

// acceptPacket decides on a UDP query whose header was read. If it accepts, the library then calls
// the handler or MsgInvalidFunc. Otherwise the library calls nothing more.
func (s *socket) acceptPacket(h dns.Header) dns.MsgAcceptAction {
	action := accept(h)
	if action != dns.MsgAccept {
		<-s.unread
	}
	return action
}

func (s *socket) answerPacket(w dns.ResponseWriter, r *dns.Msg) {
	<-s.unread
	s.answer(&query{ResponseWriter: w}, r)
}

func (s *socket) answerConnection(w dns.ResponseWriter, r *dns.Msg) {
	if !s.answer(&query{ResponseWriter: w, blocks: true}, r) {
		_ = w.Close()
	}
}

// answer passes a query to CoreDNS. It returns false if there are too many queries or the server
// ends.
func (s *socket) answer(q *query, r *dns.Msg) bool {
	if !s.gate.Begin(&q.work, fair.Source(q.RemoteAddr(), q.LocalAddr()), 1) {
		return false
	}
	defer q.work.End()
	by := s.current.Load()
	for !by.generation.enter() {
		next := s.current.Load()
		if next == by {
			return false // the server is stopping
		}
		by = next
	}
	defer by.generation.leave()
	q.server = by.server
	q.work.Run()
	by.server.ServeDNS((*queryContext)(q), q, r)
	return true
}

// bounded is a listener whose connections limit the time that a client takes to receive an answer.
type bounded struct{ net.Listener }

// Accept implements net.Listener.
func (b bounded) Accept() (net.Conn, error) {
	conn, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &connection{conn}, nil
}

type connection struct{ net.Conn }

// Write implements net.Conn. It closes the connection if an answer cannot be written: the queries
// that are queued on it belong to a client that does not read or is gone.
func (c *connection) Write(answer []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := c.Conn.Write(answer)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}
