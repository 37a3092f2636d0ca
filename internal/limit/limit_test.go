package limit

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// wait bounds events that come at once on a machine without load.
const wait = 30 * time.Second

// serve listens on loopback and holds the connections that it accepts.
func serve(t *testing.T, b *Budgets, address string, c Config) *Listener {
	t.Helper()
	l, err := b.Listen(t.Context(), address, c)
	require.NoError(t, err)
	var held sync.WaitGroup
	held.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			held.Go(func() {
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); held.Wait() })
	return l
}

// dial connects from a source address to l on the address to.
func dial(t *testing.T, l *Listener, from, to string) net.Conn {
	t.Helper()
	return opened(t)(dialer(l, to)(from))
}

func dialer(l *Listener, to string) func(from string) (net.Conn, error) {
	return func(from string) (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: wait}
		return dialer.Dial("tcp", net.JoinHostPort(to, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)))
	}
}

// opened requires a connection.
func opened(t *testing.T) func(net.Conn, error) net.Conn {
	return func(conn net.Conn, err error) net.Conn {
		t.Helper()
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

// refused requires that the listener resets a connection, during connect or later.
func refused(t *testing.T) func(net.Conn, error) {
	return func(conn net.Conn, err error) {
		t.Helper()
		if err == nil {
			defer conn.Close()
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(wait)))
			_, err = conn.Read(make([]byte, 1))
		}
		require.ErrorIs(t, err, syscall.ECONNRESET)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	require.Eventually(t, holds, wait, 5*time.Millisecond, what)
}

// budget returns a listener without a socket.
func budget(c Config) *Listener { return &Listener{cfg: c, sources: map[netip.Addr][]*Conn{}} }

func TestSourcesShareTheBudget(t *testing.T) {
	l := budget(Config{Connections: 100})
	fill := func(source string) {
		for i := 0; ; i++ {
			require.LessOrEqual(t, i, 100)
			if _, reason := l.admit(&Conn{source: netip.MustParseAddr(source)}); reason != "" {
				require.Equal(t, Full, reason)
				return
			}
		}
	}
	held := func(source string) int { return len(l.sources[netip.MustParseAddr(source)]) }
	fill("10.42.0.2")
	require.Equal(t, 100, held("10.42.0.2"), "nobody else wants any")
	fill("10.42.0.3")
	require.Equal(t, 50, held("10.42.0.3"))
	require.Equal(t, 50, held("10.42.0.2"))
	for i := range 8 {
		fill(fmt.Sprintf("10.42.1.%d", i))
	}
	for source, conns := range l.sources {
		require.InDelta(t, 10, len(conns), 1, "%s of ten sources", source)
		for i, c := range conns {
			require.Equal(t, i, c.index)
		}
	}
	require.Equal(t, 100, l.strangers)
	for _, c := range slices.Clone(l.sources[netip.MustParseAddr("10.42.0.2")]) {
		l.release(c)
		l.release(c) // a second call does nothing
	}
	require.NotContains(t, l.sources, netip.MustParseAddr("10.42.0.2"))
	require.InDelta(t, 90, l.strangers, 1)

	l = budget(Config{Connections: 100, PerAddress: 10})
	for range 10 {
		_, reason := l.admit(&Conn{source: netip.MustParseAddr("10.42.0.2")})
		require.Empty(t, reason)
	}
	_, reason := l.admit(&Conn{source: netip.MustParseAddr("10.42.0.2")})
	require.Equal(t, Address, reason)
}

// TestOwnConnectionsHaveAReserve checks that strangers' connections take nothing from this
// machine's class, and the other way round.
func TestOwnConnectionsHaveAReserve(t *testing.T) {
	l := serve(t, nil, "0.0.0.0:0", Config{Connections: 4, Own: 2})
	for range 4 {
		l.admit(&Conn{source: netip.MustParseAddr("10.42.0.2")})
	}
	_, reason := l.admit(&Conn{source: netip.MustParseAddr("10.42.0.2")})
	require.Equal(t, Full, reason)
	first := dial(t, l, "127.0.0.1", "127.0.0.1")
	dial(t, l, "127.0.0.2", "127.0.0.1")
	eventually(t, "both are counted", func() bool { own, _ := l.counts(); return own == 2 })
	refused(t)(dialer(l, "127.0.0.1")("127.0.0.3"))
	require.Equal(t, uint64(1), l.journal.totals()[Full])
	require.NoError(t, first.Close())
	eventually(t, "the reserve is free again", func() bool { own, _ := l.counts(); return own == 1 })
	dial(t, l, "127.0.0.3", "127.0.0.1")
	eventually(t, "it is counted", func() bool { own, _ := l.counts(); return own == 2 })
}

// TestStrangersAreCounted counts real connections by their source.
func TestStrangersAreCounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	from := peers(t)
	b := &Budgets{maxStrangers: 400}
	b.strangers.Store(394) // connections of other listeners
	l := serve(t, b, "192.0.2.1:0", Config{Component: "kubelet", Name: "kubelet", Connections: 100, PerAddress: 4, Own: 10})
	address := l.Addr().String()
	counted := func(n int) {
		t.Helper()
		eventually(t, "all are counted", func() bool { _, have := l.counts(); return have == n })
	}
	for range 3 {
		opened(t)(from("192.0.2.2", address))
	}
	counted(3)
	fourth := opened(t)(from("192.0.2.2", address))
	counted(4)
	refused(t)(from("192.0.2.2", address))
	trouble := b.Trouble("kubelet")
	require.Len(t, trouble, 1)
	require.Equal(t, 100, l.cfg.Connections)
	require.Contains(t, trouble[0], "from 192.0.2.2: address (since the start: address 1)")
	require.Empty(t, b.Trouble("kube-apiserver"))

	opened(t)(from("192.0.2.3", address))
	last := opened(t)(from("192.0.2.3", address))
	counted(6)
	third := opened(t)(from("192.0.2.3", address)) // replaces the fourth of the other source
	refused(t)(fourth, nil)
	counted(6)
	refused(t)(from("192.0.2.3", address)) // both hold three
	require.Equal(t, map[Reason]uint64{Address: 1, Share: 1, Descriptors: 1}, l.journal.totals())
	require.EqualValues(t, 400, b.strangers.Load())
	require.NoError(t, third.Close())
	counted(5)
	opened(t)(from("192.0.2.3", address))
	counted(6)
	dial(t, l, "192.0.2.1", "192.0.2.1") // by this thread
	eventually(t, "this machine is not a stranger", func() bool { own, _ := l.counts(); return own == 1 })

	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(b.Collector())
	require.NoError(t, testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP mote_listener_connections Open connections of a listener by class: own are of this machine.
# TYPE mote_listener_connections gauge
mote_listener_connections{class="own",listener="kubelet"} 1
mote_listener_connections{class="stranger",listener="kubelet"} 6
`), "mote_listener_connections"))
	require.Equal(t, 2+len(reasons()), testutil.CollectAndCount(b.Collector()))
	require.NoError(t, last.Close())
	counted(5)
	require.EqualValues(t, 399, b.strangers.Load())
}

// TestEndFrom: a client without a network cannot close its connections.
func TestEndFrom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network of its own")
	}
	dialFrom := peers(t)
	b := New()
	l := serve(t, b, "192.0.2.1:0", Config{Connections: 10, PerAddress: 5, Own: 10})
	opened := opened(t)
	gone := []net.Conn{opened(dialFrom("192.0.2.2", l.Addr().String())), opened(dialFrom("192.0.2.2", l.Addr().String()))}
	stays := opened(dialFrom("192.0.2.3", l.Addr().String()))
	eventually(t, "all are counted", func() bool { return b.strangers.Load() == 3 })
	require.Equal(t, 2, b.EndFrom(map[netip.Addr]bool{netip.MustParseAddr("192.0.2.2"): true, netip.MustParseAddr("192.0.2.9"): true}))
	for _, conn := range gone {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(wait)))
		_, err := conn.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	}
	eventually(t, "they do not count any more", func() bool { return b.strangers.Load() == 1 })
	_, err := stays.Write([]byte("x"))
	require.NoError(t, err)
	require.Zero(t, b.EndFrom(map[netip.Addr]bool{netip.MustParseAddr("192.0.2.2"): true}))
	require.Empty(t, l.journal.totals(), "it is no refusal")
}

func TestSilentClientsAreEnded(t *testing.T) {
	l := serve(t, nil, "127.0.0.1:0", Config{Own: 10, Start: 50 * time.Millisecond})
	talks := dial(t, l, "127.0.0.2", "127.0.0.1")
	_, err := talks.Write([]byte("GET"))
	require.NoError(t, err)
	refused(t)(dialer(l, "127.0.0.1")("127.0.0.1"))
	require.Equal(t, uint64(1), l.journal.totals()[Silent])
	eventually(t, "only the other is counted", func() bool { own, _ := l.counts(); return own == 1 })
	_, err = talks.Write([]byte(" / HTTP/1.1"))
	require.NoError(t, err)
}

// TestTLSHasToGetThrough checks that half a handshake counts as silence and a whole one does not,
// in both versions.
func TestTLSHasToGetThrough(t *testing.T) {
	certificate := httptest.NewTLSServer(nil)
	certificate.Close()
	l, err := (*Budgets)(nil).Listen(t.Context(), "127.0.0.1:0", Config{Own: 10, Start: time.Second, TLS: true})
	require.NoError(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "fine") })}
	ended := make(chan error, 1)
	go func() {
		ended <- server.Serve(tls.NewListener(l, &tls.Config{Certificates: certificate.TLS.Certificates}))
	}()
	t.Cleanup(func() { server.Close(); <-ended })

	half := dial(t, l, "127.0.0.1", "127.0.0.1")
	_, err = half.Write([]byte{22, 3, 1, 2, 0, 1}) // the beginning of a ClientHello
	require.NoError(t, err)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conn := tls.Client(dial(t, l, "127.0.0.1", "127.0.0.1"), &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
		for range 2 { // the second request comes after the start time, when the other connection has ended
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err, "TLS %x", version)
			body, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			require.Equal(t, "fine", string(body))
			refused(t)(half, nil)
			half = dial(t, l, "127.0.0.1", "127.0.0.1")
		}
	}
}

func TestRecordsInPieces(t *testing.T) {
	hello := append([]byte{22, 3, 1, 0, 23}, make([]byte, 23)...)
	for i := range hello {
		hello[i] = max(hello[i], 1)
	}
	hello[3], hello[4] = 0, 23 // 23 in lengths and bodies is not a type
	hello[7] = applicationData
	for size := 1; size <= len(hello); size++ {
		var r records
		stream := hello
		for len(stream) > 0 {
			n := min(size, len(stream))
			require.False(t, r.application(stream[:n]))
			stream = stream[n:]
		}
		require.True(t, r.application([]byte{applicationData}))
	}
}

func TestCloseFreesPortAndCount(t *testing.T) {
	b := New()
	l := serve(t, b, "127.0.0.1:0", Config{Component: "c", Name: "n", Own: 10})
	dial(t, l, "127.0.0.1", "127.0.0.1")
	eventually(t, "it is counted", func() bool { own, _ := l.counts(); return own == 1 })
	require.Len(t, b.all(), 1)
	require.NoError(t, l.Close())
	require.Empty(t, b.all())
	_, err := l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	again, err := net.Listen("tcp", l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, again.Close())
}

// TestOwnSocket checks that loopback has an accept queue of its own, and that a port in use is
// still an error.
func TestOwnSocket(t *testing.T) {
	l := serve(t, nil, "0.0.0.0:0", Config{Own: 10, OwnSocket: true})
	require.Len(t, l.sockets, 2)
	_, err := l.budgets.Listen(t.Context(), l.Addr().String(), Config{OwnSocket: true})
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.NoError(t, l.sockets[0].Close(), "the socket of strangers")
	dial(t, l, "127.0.0.1", "127.0.0.1")
	eventually(t, "it is counted", func() bool { own, _ := l.counts(); return own == 1 })
}

func TestHalfClosedConnectionsAndSplice(t *testing.T) {
	l, err := (*Budgets)(nil).Listen(t.Context(), "127.0.0.1:0", Config{Own: 10, Start: wait, Unacknowledged: time.Minute})
	require.NoError(t, err)
	defer l.Close()
	client := dial(t, l, "127.0.0.1", "127.0.0.1")
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()
	raw, err := server.(*Conn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		require.NoError(t, err)
		require.Equal(t, 60_000, ms)
	}))
	sent := strings.Repeat("x", 1<<20)
	go func() {
		_, _ = io.WriteString(client, sent)
		_ = client.(*net.TCPConn).CloseWrite()
	}()
	var got strings.Builder
	n, err := io.Copy(&got, server) // by WriteTo
	require.NoError(t, err)
	require.EqualValues(t, len(sent), n)
	require.Equal(t, sent, got.String())
	_, err = io.WriteString(server, "bye")
	require.NoError(t, err)
	require.NoError(t, server.(*Conn).CloseWrite())
	answer, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "bye", string(answer))
}

// shortEnv makes a child process of the test run out of descriptors.
const shortEnv = "MOTE_TEST_SHORT_OF_DESCRIPTORS"

// TestShortageOfDescriptorsPasses checks that the listener serves again once descriptors are
// available, and reports the shortage meanwhile.
func TestShortageOfDescriptorsPasses(t *testing.T) {
	if os.Getenv(shortEnv) != "" {
		runOutOfDescriptors(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), shortEnv+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "cannot accept connections, trying again")
}

func runOutOfDescriptors(t *testing.T) {
	b := New()
	l := serve(t, b, "127.0.0.1:0", Config{Component: "c", Name: "n", Own: 1000})
	dial(t, l, "127.0.0.1", "127.0.0.1")
	eventually(t, "it is counted", func() bool { own, _ := l.counts(); return own == 1 })

	// First the client's socket, which takes the last descriptor but one.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 64, Max: 64}))
	var files []*os.File
	for {
		f, err := os.Open("/dev/null")
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		require.NoError(t, err)
		files = append(files, f)
	}
	to := &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}}
	require.NoError(t, unix.Connect(fd, to)) // waits in the accept queue
	eventually(t, "the trouble is shown", func() bool {
		trouble := b.Trouble("c")
		return len(trouble) == 1 && strings.Contains(trouble[0], "cannot accept connections") && strings.Contains(trouble[0], "too many open files")
	})
	require.Positive(t, l.journal.totals()[Failed])
	for _, f := range files {
		require.NoError(t, f.Close())
	}
	eventually(t, "it is accepted now", func() bool { own, _ := l.counts(); return own == 2 })
	require.Empty(t, b.Trouble("c"))
}

func TestPermanentErrorsEndAccept(t *testing.T) {
	for _, e := range []syscall.Errno{unix.EMFILE, unix.ENFILE, unix.ECONNABORTED, unix.ENOBUFS, unix.ENOMEM, unix.EPERM} {
		require.False(t, permanent(&net.OpError{Err: os.NewSyscallError("accept4", e)}), e)
	}
	require.True(t, permanent(&net.OpError{Err: os.NewSyscallError("accept4", unix.EINVAL)}))
}

func TestOneLogLineAMinute(t *testing.T) {
	j := &journal{name: "n"}
	for range 3 {
		j.refused(Full, netip.MustParseAddr("10.42.0.2"))
	}
	require.Equal(t, map[Reason]uint64{Full: 2}, j.since, "the first is in the log, the others wait")
	j.logged = j.logged.Add(-logInterval)
	j.refused(Address, netip.MustParseAddr("10.42.0.2"))
	require.Empty(t, j.since)
	require.Contains(t, j.trouble(time.Now()), "full 3, address 1")
	require.Empty(t, j.trouble(time.Now().Add(recent)))
}
