package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/addons/api"
)

// privateLoopback gives the calling goroutine, and the goroutines that it starts, a private network
// with the given addresses besides 127.0.0.1. Sockets are made in the network namespace of the
// thread, so the code that opens one has to run in this thread.
func privateLoopback(t *testing.T, addresses ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
	for _, a := range addresses {
		address, err := netlink.ParseAddr(a + "/32")
		require.NoError(t, err)
		require.NoError(t, netlink.AddrAdd(lo, address))
	}
}

// serverAddress is the listening address of TestServer's server. Clients at strangerAddress and
// otherAddress count as strangers.
const (
	serverAddress   = "192.0.2.1"
	serverPort      = serverAddress + ":10053"
	strangerAddress = "192.0.2.7"
	otherAddress    = "192.0.2.8"
)

// TestServer is one test because there is one server for each process. It has no subtests because
// those run in other threads, which lack its network.
func TestServer(t *testing.T) {
	privateLoopback(t, serverAddress, strangerAddress, otherAddress)
	s, err := New(Config{
		Access:  api.Access{Server: "http://127.0.0.1:1"},
		Address: netip.MustParseAddr(serverAddress), Domain: "cluster.local", RunDir: t.TempDir(),
	})
	require.NoError(t, err)
	testRefusedReload(t, s)
	for _, test := range []func(*testing.T, *Server){
		testPipelinesThatNobodyReads, testQueriesOnAConnection, testQueriesUnderWay, testRubbish, testReload, testMetricsPage,
	} {
		require.NoError(t, s.start(sources{corefile: answering}))
		test(t, s)
		s.stop()
	}
}

// from connects from an address of the private loopback. The test's own thread must call it.
func from(t *testing.T, source, network, address string) net.Conn {
	t.Helper()
	dialer := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	if network == "udp" {
		dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(source)}
	}
	conn, err := dialer.DialContext(t.Context(), network, address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// question returns a query with its length in front, as over TCP.
func question(t *testing.T, name string) []byte {
	t.Helper()
	text, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	require.NoError(t, err)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)
}

const answering = ".:53 {\n template IN A {\n  answer \"{{ .Name }} 60 IN A 192.0.2.99\"\n }\n}\n"

// testPipelinesThatNobodyReads checks a client that pipelines queries on all connections that it
// can have and reads no answer. It must not delay other clients, and its connections must end.
func testPipelinesThatNobodyReads(t *testing.T, s *Server) {
	good := from(t, otherAddress, "udp", serverPort)
	client := &dns.Client{Timeout: 10 * time.Second}
	pipeline := slices.Repeat(question(t, "flood.test."), 4000)
	var flood sync.WaitGroup
	var cut atomic.Int32
	for range maxConnectionsPerSource {
		conn := from(t, strangerAddress, "tcp", serverPort)
		require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(1))
		flood.Go(func() {
			for {
				if _, err := conn.Write(pipeline); err != nil {
					cut.Add(1)
					return
				}
			}
		})
	}
	// One more connection from the same address is refused.
	more := from(t, strangerAddress, "tcp", serverPort)
	_ = more.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := more.Read(make([]byte, 1))
	require.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF), "%v", err)
	for range 200 {
		answer, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion("good.test.", dns.TypeA), &dns.Conn{Conn: good})
		require.NoError(t, err)
		require.Len(t, answer.Answer, 1)
	}
	flood.Wait()
	require.EqualValues(t, maxConnectionsPerSource, cut.Load())
	require.Eventually(t, func() bool { return s.front.gate.UnderWay() == 0 && running("(*Server).serveTCPConn(") == 0 },
		time.Minute, 10*time.Millisecond)
}

// testQueriesOnAConnection checks that a connection is closed after maxOnConnection queries, and
// that all of those are answered.
func testQueriesOnAConnection(t *testing.T, s *Server) {
	conn := from(t, strangerAddress, "tcp", serverPort)
	_, err := conn.Write(slices.Repeat(question(t, "a.test."), maxOnConnection))
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	for range maxOnConnection {
		answer, err := (&dns.Conn{Conn: conn}).ReadMsg()
		require.NoError(t, err)
		require.Len(t, answer.Answer, 1)
	}
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

// silent is a forward plugin whose upstream servers do not answer until released.
type silent struct{ released chan struct{} }

func (silent) Name() string { return "forward" }

func (f silent) ServeDNS(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	<-f.released
	return dns.RcodeServerFailure, nil
}

// testQueriesUnderWay checks that a client whose queries wait for an upstream server has a limit.
// Queries above it are dropped and counted, and other clients are answered meanwhile.
func testQueriesUnderWay(t *testing.T, s *Server) {
	forward := silent{make(chan struct{})}
	dnsserver.Directives = append(directives(), "mote_silent")
	plugin.Register("mote_silent", func(c *caddy.Controller) error {
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return forward })
		return nil
	})
	require.NoError(t, s.start(sources{corefile: "slow.test:53 {\n mote_silent\n}\n" + answering}))
	flood := from(t, strangerAddress, "udp", serverPort)
	query := question(t, "a.slow.test.")[2:]
	require.Eventually(t, func() bool {
		for range 50 {
			_, _ = flood.Write(query)
		}
		return s.front.gate.Refused() > 0
	}, 30*time.Second, time.Millisecond)
	require.EqualValues(t, maxQueriesPerSource, s.front.gate.UnderWay())
	require.Contains(t, strings.Join(s.Trouble(), "\n"), "queries refused because too many were under way, the last from 192.0.2.7")
	answer, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion("good.test.", dns.TypeA),
		&dns.Conn{Conn: from(t, otherAddress, "udp", serverPort)})
	require.NoError(t, err)
	require.Len(t, answer.Answer, 1)
	close(forward.released)
	require.Eventually(t, func() bool { return s.front.gate.UnderWay() == 0 }, time.Minute, 10*time.Millisecond)
}

// testRubbish checks that messages that are not queries end at once, so that they do not use up the
// places of queries.
func testRubbish(t *testing.T, s *Server) {
	conn := from(t, strangerAddress, "udp", serverPort)
	good := question(t, "a.test.")[2:]
	answerBit := slices.Clone(good)
	answerBit[2] |= 0x80
	manyQuestions := slices.Clone(good)
	manyQuestions[5] = 9
	for range maxUnread {
		for _, message := range [][]byte{good[:5], good[:len(good)-3], answerBit, manyQuestions} {
			_, err := conn.Write(message)
			require.NoError(t, err)
		}
	}
	other := &dns.Conn{Conn: from(t, otherAddress, "udp", serverPort)}
	require.Eventually(t, func() bool { // the kernel may drop part of a burst
		answer, _, err := (&dns.Client{Timeout: 5 * time.Second}).ExchangeWithConn(new(dns.Msg).SetQuestion("a.test.", dns.TypeA), other)
		return err == nil && len(answer.Answer) == 1
	}, time.Minute, time.Millisecond)
	require.Eventually(t, func() bool { return s.front.gate.UnderWay() == 0 }, 10*time.Second, time.Millisecond)
}

// testReload checks that the sockets stay open, and that the old or the new Corefile answers each
// query.
func testReload(t *testing.T, s *Server) {
	conn := from(t, strangerAddress, "udp", serverPort)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		client := &dns.Client{Timeout: 10 * time.Second}
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			answer, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion("a.test.", dns.TypeA), &dns.Conn{Conn: conn})
			if err == nil && len(answer.Answer) != 1 {
				err = errors.New(answer.String())
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	for _, and := range []string{"b.test:53 {\n bind 192.0.2.8\n}\n", "", "prometheus.test:53 {\n prometheus :9153\n}\n", ""} {
		require.NoError(t, s.start(sources{corefile: answering + and}))
	}
	close(stop)
	require.NoError(t, <-ended)
	require.Len(t, s.front.sockets, 1)
	require.Empty(t, s.front.pages)
	err := s.start(sources{corefile: answering + answering})
	require.ErrorContains(t, err, "cannot serve dns://.:10053 on 192.0.2.1 - it is already defined")
	err = s.start(sources{corefile: "dns://.:53 tls://.:853 {\n whoami\n}\n"})
	require.ErrorContains(t, err, "write two blocks")
	require.Len(t, s.front.sockets, 1)
}

// testMetricsPage checks that the page shows CoreDNS' series and none of the other components of
// the process.
func testMetricsPage(t *testing.T, s *Server) {
	require.NoError(t, s.start(sources{corefile: strings.Replace(answering, "{\n", "{\n prometheus :9153\n", 1)}))
	answer, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion("a.test.", dns.TypeA),
		&dns.Conn{Conn: from(t, strangerAddress, "udp", serverPort)})
	require.NoError(t, err)
	require.Len(t, answer.Answer, 1)
	page := from(t, strangerAddress, "tcp", serverAddress+":9153")
	client := http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return page, nil },
	}}
	response, err := client.Get("http://metrics/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	for _, want := range []string{"coredns_build_info{", "coredns_dns_requests_total{", "coredns_plugin_enabled{name=\"template\"", "coredns_mote_refused_queries_total ", "go_goroutines "} {
		require.Contains(t, string(text), want)
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			require.Regexp(t, "^(coredns|go|process)_", line)
		}
	}
}
