package ingress

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// strangerAddress and otherAddress are two strangers: loopback addresses that the proxy treats as
// addresses of other machines here.
const strangerAddress, otherAddress = "127.0.0.7", "127.0.0.8"

// newFloodLab makes a lab with little memory for requests. Its backend answers at once and echoes
// bodies.
func newFloodLab(t *testing.T) *lab {
	l := newLabWith(t, func(p *proxy) {
		b := boundsFor(512 << 20)
		b.memory, b.memoryPerSource = 16<<20, 4<<20
		b.body, b.sent = time.Second, time.Second
		p.setBounds(b)
		p.source = func(remote, _ net.Addr) netip.Addr { return remote.(*net.TCPAddr).AddrPort().Addr() }
	})
	l.lead("web", "", server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "good")
			return
		}
		_ = http.NewResponseController(w).EnableFullDuplex()
		if r.Header.Get("Quiet") == "" {
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.Copy(w, r.Body)
	}))
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	return l
}

// stranger is a raw HTTP/2 connection without TLS.
type stranger struct {
	net.Conn
	*http2.Framer
	header  []byte // of a POST whose body is not sent yet
	next    uint32
	refused *atomic.Int64 // the 503s that it has read
}

func newStranger(t *testing.T, l *lab, header map[string]string) *stranger {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(strangerAddress)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", l.http)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	s := &stranger{Conn: conn, Framer: http2.NewFramer(conn, conn), next: 1, refused: new(atomic.Int64)}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "a.test"}, {Name: ":path", Value: "/"}} {
		require.NoError(t, encoder.WriteField(f))
	}
	for name, value := range header {
		require.NoError(t, encoder.WriteField(hpack.HeaderField{Name: name, Value: value, Sensitive: true}))
	}
	s.header = block.Bytes()
	_, err = io.WriteString(conn, http2.ClientPreface)
	require.NoError(t, err)
	require.NoError(t, s.WriteSettings())
	return s
}

// open begins a request.
func (s *stranger) open() error {
	err := s.WriteHeaders(http2.HeadersFrameParam{StreamID: s.next, BlockFragment: s.header, EndHeaders: true})
	s.next += 2
	return err
}

// readAll answers the frames that keep a connection alive, and passes frames to each until the
// connection ends.
func (s *stranger) readAll(each func(http2.Frame)) {
	decoder := hpack.NewDecoder(4096, nil)
	for {
		frame, err := s.ReadFrame()
		if err != nil {
			return
		}
		switch f := frame.(type) {
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = s.WritePing(true, f.Data)
			}
		case *http2.HeadersFrame:
			fields, _ := decoder.DecodeFull(f.HeaderBlockFragment())
			for _, field := range fields {
				if field.Name == ":status" && field.Value == "503" {
					s.refused.Add(1)
				}
			}
		}
		each(frame)
	}
}

// goodClient sends requests from another address and fails the test if it gets no answer.
func goodClient(t *testing.T, l *lab) func() {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(otherAddress)}}
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, network, l.http)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	return func() {
		t.Helper()
		response, err := client.Get("http://a.test/")
		require.NoError(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.Equal(t, "good", string(text))
		require.Equal(t, http.StatusOK, response.StatusCode)
	}
}

// inUse returns the memory of the process' heap and stacks after garbage collection.
func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// TestUnfinishedBodies checks streams with large headers whose bodies do not end. They take no more
// than their client's share, further ones are answered 503, and other clients are served. All of
// the memory is free again after the pause was too long.
func TestUnfinishedBodies(t *testing.T) {
	l := newFloodLab(t)
	good := goodClient(t, l)
	good()
	before := inUse()
	const connections = 40
	var strangers []*stranger
	for range connections {
		s := newStranger(t, l, map[string]string{"cookie": strings.Repeat("x", 12<<10)})
		strangers = append(strangers, s)
		go s.readAll(func(http2.Frame) {})
		for range maxStreams {
			if s.open() != nil {
				break // closed, because it had too many refusals
			}
		}
	}
	require.Eventually(t, func() bool { return l.proxy.gate.Refused() > 0 }, 30*time.Second, time.Millisecond)
	require.LessOrEqual(t, l.proxy.gate.UnderWay(), l.proxy.bounds.memoryPerSource+requestMemory)
	good()
	peak := inUse() - before
	t.Logf("%d KiB more at the peak, %d requests refused", peak>>10, l.proxy.gate.Refused())
	// Connections take memory themselves; those of the client are in this process too. Without
	// limits the peak is 370 MiB.
	require.Less(t, peak, l.proxy.bounds.memoryPerSource+refusalMemoryPerSource+connections*(512<<10))
	// The backend has answered, and the bodies do not continue.
	require.Eventually(t, func() bool { return l.proxy.gate.UnderWay() == 0 && l.proxy.refusals.UnderWay() == 0 }, time.Minute, 10*time.Millisecond)
	var read int64
	for _, s := range strangers {
		s.Close()
		read += s.refused.Load()
	}
	require.Positive(t, read, "503 was read")
	good()
	require.Eventually(t, func() bool { return inUse()-before < 4<<20 }, time.Minute, 100*time.Millisecond)
}

// TestAnswersThatNobodyTakes checks that a client that reads nothing, not even refusals, loses its
// connections.
func TestAnswersThatNobodyTakes(t *testing.T) {
	l := newFloodLab(t)
	good := goodClient(t, l)
	var ended atomic.Int64
	for range 20 {
		s := newStranger(t, l, map[string]string{"cookie": strings.Repeat("x", 12<<10)})
		require.NoError(t, s.Conn.(*net.TCPConn).SetReadBuffer(1))
		go func() {
			defer ended.Add(1)
			for s.open() == nil {
			}
		}()
	}
	for until := time.Now().Add(time.Minute); ended.Load() < 20; {
		good()
		require.True(t, time.Now().Before(until), "%d of 20 connections have ended", ended.Load())
	}
	require.Eventually(t, func() bool { return l.proxy.gate.UnderWay() == 0 && l.proxy.refusals.UnderWay() == 0 }, time.Minute, 10*time.Millisecond)
}

// TestClosedWindows checks that an answer ends if its client keeps the window of the stream closed,
// even though the client answers pings.
func TestClosedWindows(t *testing.T) {
	l := newFloodLab(t)
	l.lead("web", "", server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) }))
	l.apply()
	s := newStranger(t, l, nil)
	reset := make(chan http2.ErrCode, 1)
	go s.readAll(func(f http2.Frame) {
		if f, ok := f.(*http2.RSTStreamFrame); ok {
			reset <- f.ErrCode
		}
	})
	require.NoError(t, s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.header, EndHeaders: true, EndStream: true}))
	select {
	case <-reset:
	case <-time.After(30 * time.Second):
		t.Fatal("the stream goes on")
	}
	require.Eventually(t, func() bool { return l.proxy.gate.UnderWay() == 0 }, time.Minute, 10*time.Millisecond)
}

// TestPausesOverHTTP2 checks that a body that stops gets 408 while the pod waits for it. A gRPC
// call may pause once its answer has begun.
func TestPausesOverHTTP2(t *testing.T) {
	l := newFloodLab(t)
	status := func(header map[string]string) (first string, ended chan struct{}) {
		s := newStranger(t, l, header)
		statuses := make(chan string, 1)
		ended = make(chan struct{})
		decoder := hpack.NewDecoder(4096, nil)
		go s.readAll(func(f http2.Frame) {
			switch f := f.(type) {
			case *http2.HeadersFrame:
				fields, _ := decoder.DecodeFull(f.HeaderBlockFragment())
				statuses <- fields[0].Value
			case *http2.RSTStreamFrame:
				close(ended)
			}
		})
		require.NoError(t, s.open())
		select {
		case first = <-statuses:
		case <-time.After(30 * time.Second):
			t.Fatal("no answer")
		}
		return first, ended
	}
	first, _ := status(map[string]string{"quiet": "1"})
	require.Equal(t, "408", first)
	first, grpc := status(map[string]string{"content-type": "application/grpc"})
	require.Equal(t, "200", first)
	first, other := status(nil)
	require.Equal(t, "200", first)
	select {
	case <-other:
	case <-time.After(30 * time.Second):
		t.Fatal("the stream goes on")
	}
	select {
	case <-grpc:
		t.Fatal("a silent call of gRPC was ended")
	default:
	}
}

// TestAnswersWithoutBody checks that the header of an answer ends its stream over HTTP/2. gRPC
// treats that header as the trailers of a failed call, and otherwise misses the trailers.
func TestAnswersWithoutBody(t *testing.T) {
	l := newFloodLab(t)
	l.lead("web", "", server(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Grpc-Status", "5") }))
	l.apply()
	s := newStranger(t, l, nil)
	ends := make(chan bool, 1)
	go s.readAll(func(f http2.Frame) {
		if f, ok := f.(*http2.HeadersFrame); ok {
			ends <- f.StreamEnded()
		}
	})
	require.NoError(t, s.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: s.header, EndHeaders: true, EndStream: true}))
	select {
	case ended := <-ends:
		require.True(t, ended)
	case <-time.After(30 * time.Second):
		t.Fatal("no answer")
	}
}

// TestTakenBack checks that a client that cancels its requests without end loses its connection.
func TestTakenBack(t *testing.T) {
	l := newFloodLab(t)
	l.lead("web", "", server(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	l.apply()
	s := newStranger(t, l, nil)
	ended := make(chan struct{})
	go func() { defer close(ended); s.readAll(func(http2.Frame) {}) }()
	for id := uint32(1); ; id += 2 {
		if s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: s.header, EndHeaders: true, EndStream: true}) != nil ||
			s.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
			break
		}
	}
	<-ended
	require.Eventually(t, func() bool { return l.proxy.gate.UnderWay() == 0 }, time.Minute, 10*time.Millisecond)
}

// TestSlowBodies checks that a body of known length has to arrive at a minimum rate, however short
// its pauses are. Waits of the pod do not count.
func TestSlowBodies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out := net.Pipe()
		ended := make(chan struct{})
		defer func() { in.Close(); <-ended }()
		go func() {
			defer close(ended)
			defer out.Close()
			for range 1000 {
				time.Sleep(10 * time.Second) // on the test's own clock
				if _, err := out.Write([]byte("x")); err != nil {
					return
				}
			}
		}()
		body := &timedBody{ReadCloser: in, control: http.NewResponseController(pipeDeadline{conn: in}), request: &request{}, limit: bodyTimeout, sized: true}
		began := time.Now()
		_, err := io.Copy(io.Discard, body)
		require.Error(t, err)
		require.True(t, body.request.late.Load())
		require.Equal(t, bodyTimeout, time.Since(began))
	})
}

// pipeDeadline is a ResponseWriter whose read deadline is that of a connection.
type pipeDeadline struct {
	http.ResponseWriter
	conn net.Conn
}

func (p pipeDeadline) SetReadDeadline(at time.Time) error { return p.conn.SetReadDeadline(at) }

// TestSmuggling checks requests whose end two servers could see in different places. They are
// refused, or reach the pod in one form.
func TestSmuggling(t *testing.T) {
	l := newLab(t)
	// A request that is refused in its body may reach the backend after its answer, so each has a
	// number.
	var seen sync.Map // number of the request: text
	var asked sync.Map
	l.lead("web", "", server(t, func(w http.ResponseWriter, r *http.Request) {
		number := r.Header.Get("Number")
		count, _ := asked.LoadOrStore(number, new(atomic.Int64))
		count.(*atomic.Int64).Add(1)
		body, _ := io.ReadAll(r.Body)
		text := r.URL.Path + " " + strings.Join(r.Header["Content-Length"], ",") + strings.Join(r.TransferEncoding, ",") + " " + string(body)
		seen.Store(number, text)
	}))
	l.add(`{rules: [{host: a.test, http: {paths: [{path: /, pathType: Prefix, backend: ` + toWeb + `}]}}]}`)
	l.apply()
	hidden := "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a.test\r\n\r\n"
	next := 0
	for name, c := range map[string]struct{ header, body, want string }{
		"length and chunked: chunked counts":   {"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n", "/ chunked abc"},
		"two lengths":                          {"Content-Length: 5\r\nContent-Length: 6\r\n", hidden, ""},
		"the same length twice":                {"Content-Length: 3\r\nContent-Length: 3\r\n", "abc", "/ 3 abc"},
		"a length with a sign":                 {"Content-Length: +3\r\n", "abc", ""},
		"a list of lengths":                    {"Content-Length: 3, 4\r\n", "abc", ""},
		"chunked, misspelt":                    {"Transfer-Encoding: xchunked\r\n", hidden, ""},
		"chunked twice":                        {"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", hidden, ""},
		"chunked, then identity":               {"Transfer-Encoding: chunked, identity\r\n", hidden, ""},
		"chunked after a tab":                  {"Transfer-Encoding:\tchunked\r\n", "3\r\nabc\r\n0\r\n\r\n", "/ chunked abc"},
		"chunked with a vertical tab":          {"Transfer-Encoding: \vchunked\r\n", hidden, ""},
		"a space before the colon":             {"Transfer-Encoding : chunked\r\n", hidden, ""},
		"a folded line":                        {"Transfer-Encoding:\r\n chunked\r\n", "3\r\nabc\r\n0\r\n\r\n", "/ chunked abc"},
		"a folded line that begins the header": {" Transfer-Encoding: chunked\r\n", hidden, ""},
		"a bare carriage return":               {"X: a\rTransfer-Encoding: chunked\r\n", hidden, ""},
		"a NUL":                                {"X: a\x00b\r\n", "", ""},
		"a chunk size that overflows":          {"Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nabc\r\n0\r\n\r\n", ""},
		"a chunk size with a sign":             {"Transfer-Encoding: chunked\r\n", "+3\r\nabc\r\n0\r\n\r\n", ""},
	} {
		next++
		number := strconv.Itoa(next)
		conn, err := net.Dial("tcp", l.http)
		require.NoError(t, err)
		require.NoError(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		first := "Number: " + number + "\r\nHost: a.test\r\n"
		_, err = io.WriteString(conn, "POST / HTTP/1.1\r\n"+first+c.header+"\r\n"+c.body)
		require.NoError(t, err, name)
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err, name)
		if c.want != "" {
			require.Equal(t, http.StatusOK, response.StatusCode, name)
			text, _ := seen.Load(number)
			require.Equal(t, c.want, text, name)
			count, _ := asked.Load(number)
			require.EqualValues(t, 1, count.(*atomic.Int64).Load(), name)
		} else {
			require.GreaterOrEqual(t, response.StatusCode, 400, name)
			seen.Range(func(_, text any) bool {
				require.NotContains(t, text, "admin", name)
				return true
			})
		}
		conn.Close()
	}
}

func TestBoundsByMemory(t *testing.T) {
	small, large := boundsFor(256<<20), boundsFor(12<<30)
	require.Equal(t, bounds{connections: 1024, connectionsPerSource: 128, memory: 32 << 20, memoryPerSource: 16 << 20, body: bodyTimeout, sent: sentTimeout}, small)
	require.Equal(t, bounds{connections: 4096, connectionsPerSource: 512, memory: 256 << 20, memoryPerSource: 64 << 20, body: bodyTimeout, sent: sentTimeout}, large)
}
