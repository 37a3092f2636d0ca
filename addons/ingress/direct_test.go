package ingress

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// counted returns a lab with a backend, and the number of connections that the backend received.
func counted(t *testing.T, handler http.HandlerFunc) (l *lab, connections *atomic.Int64) {
	t.Helper()
	connections = new(atomic.Int64)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &http.Server{Handler: handler, ConnState: func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }()
	t.Cleanup(func() { s.Close(); <-done })
	l = newLab(t)
	l.lead("web", "", listener.Addr().String())
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	return l, connections
}

func TestConnectionsAreKept(t *testing.T) {
	l, connections := counted(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/chunks":
			for range 3 {
				fmt.Fprint(w, strings.Repeat("x", 1000))
				_ = http.NewResponseController(w).Flush()
			}
		case "/hints":
			w.Header().Set("Link", "early")
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "late")
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		default:
			fmt.Fprint(w, "text")
		}
	})
	ask := func(method, path string) string {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://a.test"+path, nil)
		require.NoError(t, err)
		response, body := l.ask(request)
		return fmt.Sprint(response.StatusCode, " ", len(body), " ", response.ContentLength)
	}
	for range 3 {
		require.Equal(t, "200 3000 -1", ask("GET", "/chunks"))
		require.Equal(t, "200 4 4", ask("GET", "/hints"))
		require.Equal(t, "204 0 0", ask("GET", "/none"))
		require.Equal(t, "200 4 4", ask("GET", "/"))
		require.Equal(t, "200 0 4", ask("HEAD", "/"))
	}
	require.EqualValues(t, 1, connections.Load())
	require.Len(t, l.proxy.routes.Load().others.fallback.backend.endpoints[0].kept.idle, 1)
	l.compiler.nothing()
	require.Equal(t, "200 4 4", ask("GET", "/"), "who has the old table is served, but nothing is kept")
	require.Empty(t, l.proxy.routes.Load().others.fallback.backend.endpoints[0].kept.idle)
}

// TestClosedWhileIdle uses a backend that closes each connection after its answer without notice.
func TestClosedWhileIdle(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1000))
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			conn.Close()
		}
	}()
	l := newLab(t)
	l.lead("web", "", listener.Addr().String())
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	for range 10 {
		status, body := l.get("http://a.test/")
		require.Equal(t, "200 ok", fmt.Sprint(status, " ", body))
	}
}

// TestStrayAnswer checks that unrequested data from a backend is not used as an answer.
func TestStrayAnswer(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	answered, strayed := make(chan struct{}), make(chan struct{})
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if _, err := conn.Read(make([]byte, 1000)); err != nil {
				t.Error(err)
			}
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			<-answered
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray")
			strayed <- struct{}{}
			defer conn.Close()
		}
	}()
	l := newLab(t)
	l.lead("web", "", listener.Addr().String())
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	for range 3 {
		status, body := l.get("http://a.test/")
		require.Equal(t, "200 ok", fmt.Sprint(status, " ", body))
		answered <- struct{}{}
		<-strayed
	}
}

func TestAnswersThatCannotBeRead(t *testing.T) {
	for answer, want := range map[string]string{
		"nonsense\r\n\r\n": "502",
		"":                 "502",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n":                   "502",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxAnswerHeader) + "\r\n\r\n":                      "502",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more":                                         "200 ok",
		"HTTP/1.0 200 OK\r\n\r\nuntil the end":                                                            "200 until the end",
		"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\nshort":                                             "EOF",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n": "200 ok",
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1000))
			_, _ = io.WriteString(conn, answer)
			conn.Close()
		}()
		l := newLab(t)
		l.lead("web", "", listener.Addr().String())
		l.add(`{defaultBackend: ` + toWeb + `}`)
		l.apply()
		got := ""
		if response, err := l.client().Get("http://a.test/"); err != nil {
			got = err.Error()
		} else {
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			got = fmt.Sprint(response.StatusCode, " ", string(body))
			if err != nil {
				got = err.Error()
			}
		}
		require.Contains(t, got, want, "%.60q", answer)
		listener.Close()
	}
}

// TestClientLeaves checks that the backend notices when the client leaves, whether its answer has
// begun or not.
func TestClientLeaves(t *testing.T) {
	for _, path := range []string{"/silent", "/streaming"} {
		asked, left := make(chan struct{}), make(chan struct{})
		l, _ := counted(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/streaming" {
				fmt.Fprint(w, "begun") // and seen at once, though more follows
				_ = http.NewResponseController(w).Flush()
			}
			close(asked)
			<-r.Context().Done()
			close(left)
		})
		ctx, cancel := context.WithCancel(t.Context())
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://a.test"+path, nil)
		require.NoError(t, err)
		client := l.client()
		done := make(chan struct{})
		go func() {
			defer close(done)
			response, err := client.Do(request)
			if err == nil {
				begun := make([]byte, 5)
				_, _ = io.ReadFull(response.Body, begun)
				cancel()
				response.Body.Close()
			}
		}()
		<-asked
		if path == "/silent" {
			cancel()
		}
		<-left
		<-done
		cancel()
	}
}

func TestKeptConnectionsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var k keptConnections
		put := func() net.Conn {
			ours, theirs := net.Pipe()
			require.True(t, k.put(newConnection(ours, &k)))
			return theirs
		}
		closed := func(conn net.Conn) bool {
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond)) // fails when it is closed
			_, err := conn.Read(make([]byte, 1))
			return err == io.EOF
		}
		first := put()
		time.Sleep(keptFor / 2)
		second := put()
		time.Sleep(keptFor/2 + time.Second)
		require.True(t, closed(first))
		require.False(t, closed(second))
		time.Sleep(keptFor / 2)
		require.True(t, closed(second))
		require.Nil(t, k.take())
		third := put()
		k.close()
		require.True(t, closed(third))
		ours, _ := net.Pipe()
		require.False(t, k.put(newConnection(ours, &k)))
	})
}

// forbidden is a connection whose packets are dropped until the kernel gives up.
type forbidden struct {
	net.Conn
	asked, closed *int
}

func (forbidden) Write(b []byte) (int, error) { return len(b), nil }

func (f forbidden) Read([]byte) (int, error) {
	*f.asked++
	return 0, os.ErrDeadlineExceeded
}

func (f forbidden) Close() error {
	*f.closed++
	return nil
}

// TestForbiddenConnectionsAreNotTriedOneByOne checks that after the first failure all kept
// connections are dropped for a new one.
func TestForbiddenConnectionsAreNotTriedOneByOne(t *testing.T) {
	e, asked, closed := &endpoint{address: says(t, "web")}, 0, 0
	defer e.kept.close()
	for range 5 {
		require.True(t, e.kept.put(newConnection(forbidden{asked: &asked, closed: &closed}, &e.kept)))
	}
	request, err := http.NewRequest(http.MethodGet, "http://a.test/", nil)
	require.NoError(t, err)
	response, err := direct{new(net.Dialer).DialContext}.roundTrip(request, e)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, []int{1, 5}, []int{asked, closed})
}
