package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/addons/api"
)

// ask sends a request to the lab and returns the response with its body.
func (l *lab) ask(request *http.Request) (*http.Response, string) {
	l.t.Helper()
	response, err := l.client().Do(request)
	require.NoError(l.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(l.t, err)
	return response, strings.TrimSpace(string(body))
}

func (l *lab) get(url string) (int, string) {
	l.t.Helper()
	request, err := http.NewRequestWithContext(l.t.Context(), http.MethodGet, url, nil)
	require.NoError(l.t, err)
	response, body := l.ask(request)
	return response.StatusCode, body
}

func TestWhatTheBackendLearns(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", server(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.Host, r.RequestURI)
		for _, name := range []string{"For", "Host", "Proto", "Port", "Ssl"} {
			fmt.Fprintln(w, name, r.Header.Values("X-Forwarded-"+name))
		}
		for name := range r.Header {
			if strings.Contains(name, "_") {
				fmt.Fprintln(w, name)
			}
		}
		fmt.Fprintln(w, r.Header.Values("X-Real-Ip"), r.Header.Values("Forwarded"), r.Header.Values("X-Mine"), r.Header.Values("User-Agent"))
	}))
	l.add(`{defaultBackend: ` + toWeb + `}`)
	require.Empty(t, l.apply())
	request, err := http.NewRequest(http.MethodGet, "https://a.test/a%2Fb//../c?x=1;y=%zz", nil)
	require.NoError(t, err)
	for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Ssl", "X-Real-Ip", "Forwarded"} {
		request.Header.Set(name, "lie")
	}
	for _, name := range []string{"X_Forwarded_For", "X-Forwarded_Proto", "x_real_ip", "My_Own"} {
		request.Header[name] = []string{"lie"}
	}
	request.Header.Set("X-Mine", "kept")
	request.Header.Set("User-Agent", "")
	_, body := l.ask(request)
	require.Equal(t, `a.test /a%2Fb//../c?x=1;y=%zz
For [127.0.0.1]
Host [a.test]
Proto [https]
Port [443]
Ssl []
My_own
[127.0.0.1] [] [kept] []`, body)
	_, body = l.get("http://a.test/")
	require.Contains(t, body, "Proto [http]\nPort [80]\n")
}

func TestNoRoute(t *testing.T) {
	l := newLab(t)
	l.lead("web", "")
	l.add(`{rules: [{host: a.test, http: {paths: [{path: /, pathType: Prefix, backend: ` + toWeb + `}]}}]}`)
	l.apply()
	status, body := l.get("http://b.test/")
	require.Equal(t, "404 404 no Ingress has this host and path", fmt.Sprint(status, " ", body))
	status, body = l.get("http://a.test/")
	require.Equal(t, "503 503 the Service has no ready pod", fmt.Sprint(status, " ", body))
	l.lead("web", "", closedPort(t))
	l.apply()
	status, body = l.get("http://a.test/")
	require.Equal(t, "502 502 the Service did not answer", fmt.Sprint(status, " ", body))
}

func TestRedirectOnlyWhenAskedFor(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", says(t, "web"))
	i := l.add(`{defaultBackend: ` + toWeb + `, tls: [{hosts: [a.test]}]}`)
	l.apply()
	status, body := l.get("http://a.test/x?y")
	require.Equal(t, "200 web", fmt.Sprint(status, " ", body))
	i.Annotations = map[string]string{annRedirect: "true"}
	l.apply()
	request, err := http.NewRequest(http.MethodPost, "http://a.test:80/x?y", strings.NewReader("body"))
	require.NoError(t, err)
	response, _ := l.ask(request)
	require.Equal(t, http.StatusPermanentRedirect, response.StatusCode)
	require.Equal(t, "https://a.test/x?y", response.Header.Get("Location"))
	status, body = l.get("https://a.test/x")
	require.Equal(t, "200 web", fmt.Sprint(status, " ", body))
}

// TestAnotherEndpoint checks that a pod that refuses connections causes no failed request, with a
// body or without.
func TestAnotherEndpoint(t *testing.T) {
	for _, protocol := range []string{"", appH2C, appHTTPS} {
		t.Run(protocol, func(t *testing.T) {
			l := newLab(t)
			l.lead("web", protocol, closedPort(t), closedPort(t), startBackend(t, protocol, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				_, _ = w.Write(body)
			}))
			l.add(`{defaultBackend: ` + toWeb + `}`)
			for range 8 {
				l.compiler.endpoints = nil
				l.apply() // a new backend begins at any endpoint
				request, err := http.NewRequest(http.MethodPost, "http://a.test/", io.MultiReader(strings.NewReader("body")))
				require.NoError(t, err)
				response, body := l.ask(request)
				require.Equal(t, "200 body", fmt.Sprint(response.StatusCode, " ", body))
			}
		})
	}
}

func TestEndpointsTakeTurns(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", says(t, "a"), says(t, "b"))
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	answers := make(map[string]int)
	for range 10 {
		_, body := l.get("http://a.test/")
		answers[body]++
	}
	require.Equal(t, map[string]int{"a": 5, "b": 5}, answers)
}

// startBackend starts a backend that speaks a protocol.
func startBackend(t *testing.T, protocol string, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	switch protocol {
	case appH2C:
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	case appHTTPS:
		s.EnableHTTP2 = true
		s.StartTLS()
	default:
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestStreamsAndTrailers checks two needs of gRPC: both sides send at the same time, and trailers
// come at the end.
func TestStreamsAndTrailers(t *testing.T) {
	for _, protocol := range []string{appH2C, appHTTPS} {
		t.Run(protocol, func(t *testing.T) {
			l := newLab(t)
			l.lead("web", protocol, startBackend(t, protocol, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Trailer", "Grpc-Status")
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
				lines := bufio.NewScanner(r.Body)
				for lines.Scan() {
					fmt.Fprintln(w, r.Proto, r.Header.Get("Te"), lines.Text())
					_ = http.NewResponseController(w).Flush()
				}
				w.Header().Set("Grpc-Status", "0")
			}))
			l.add(`{defaultBackend: ` + toWeb + `}`)
			require.Empty(t, l.apply())
			for _, scheme := range []string{"http", "https"} {
				transport := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
				transport.Protocols.SetHTTP2(true)
				transport.Protocols.SetUnencryptedHTTP2(true)
				defer transport.CloseIdleConnections()
				to := map[string]string{"http": l.http, "https": l.https}[scheme]
				body, talk := io.Pipe()
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, scheme+"://"+to+"/", body)
				require.NoError(t, err)
				request.Header.Set("Te", "trailers")
				response, err := transport.RoundTrip(request)
				require.NoError(t, err)
				answers := bufio.NewReader(response.Body)
				for _, word := range []string{"one", "two"} {
					fmt.Fprintln(talk, word)
					answer, err := answers.ReadString('\n')
					require.NoError(t, err)
					require.Equal(t, "HTTP/2.0 trailers "+word+"\n", answer)
				}
				require.NoError(t, talk.Close())
				_, err = io.Copy(io.Discard, answers)
				require.NoError(t, err)
				require.Equal(t, "0", response.Trailer.Get("Grpc-Status"))
				response.Body.Close()
			}
		})
	}
}

// TestUpgrade checks that WebSocket works, and that its connection outlives the routes.
func TestUpgrade(t *testing.T) {
	for _, protocol := range []string{"", appHTTPS} {
		l := newLab(t)
		l.lead("web", protocol, startBackend(t, protocol, func(w http.ResponseWriter, r *http.Request) {
			conn, both, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
			_, _ = io.Copy(conn, both)
		}))
		l.add(`{defaultBackend: ` + toWeb + `}`)
		l.apply()
		conn, err := net.Dial("tcp", l.http)
		require.NoError(t, err)
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		answers := bufio.NewReader(conn)
		response, err := http.ReadResponse(answers, nil)
		require.NoError(t, err)
		require.Equal(t, 101, response.StatusCode)
		l.ingresses = nil
		l.apply()
		fmt.Fprintln(conn, "echo")
		line, err := answers.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "echo\n", line)
	}
}

// exchange sends text to the lab and returns the status of the answer.
func (l *lab) exchange(text string) int {
	l.t.Helper()
	conn, err := net.Dial("tcp", l.http)
	require.NoError(l.t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, text)
	require.NoError(l.t, err)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(l.t, err)
	return answer.StatusCode
}

// TestNoTunnel checks that the backend is not asked to upgrade to HTTP/2, because the proxy would
// not see the requests that follow.
func TestNoTunnel(t *testing.T) {
	l := newLab(t)
	asked := make(chan http.Header, 1)
	l.lead("web", "", server(t, func(_ http.ResponseWriter, r *http.Request) { asked <- r.Header }))
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	for _, wish := range []string{"h2c", "H2C", "websocket, h2c"} {
		require.Equal(t, 200, l.exchange("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: "+wish+"\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"))
		header := <-asked
		for _, name := range []string{"Connection", "Upgrade", "Http2-Settings"} {
			require.Empty(t, header.Values(name), wish)
		}
	}
}

// TestTargetWithoutPath checks that "http:admin" does not reach a backend that treats it as /admin,
// if only / is served.
func TestTargetWithoutPath(t *testing.T) {
	l := newLab(t)
	l.lead("web", "") // without a pod, so a request that reached it would get 503
	l.add(`{rules: [{host: a.test, http: {paths: [{path: /, pathType: Exact, backend: ` + toWeb + `}]}}]}`)
	l.apply()
	for target, want := range map[string]int{"http:admin": 400, "http:%2fadmin": 400, "/admin": 404, "http://a.test": 503} {
		require.Equal(t, want, l.exchange("GET "+target+" HTTP/1.1\r\nHost: a.test\r\n\r\n"), target)
	}
}

// TestHalfClosed checks a client that closes its half of the connection and so counts as gone. It
// must not get a success status.
func TestHalfClosed(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", server(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	conn, err := net.Dial("tcp", l.http)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Empty(t, answer)
}

// TestReloadUnderLoad checks that no request notices routes and endpoints that change all the time.
func TestReloadUnderLoad(t *testing.T) {
	l := newLab(t)
	one, other := says(t, "web"), says(t, "web")
	l.secretFor("a", "a.test")
	l.lead("web", "", one)
	l.add(`{tls: [{hosts: [a.test], secretName: a}], rules: [{host: a.test, http: {paths: [{path: /, pathType: Prefix, backend: ` + toWeb + `}]}}]}`)
	l.apply()
	var asked atomic.Int64
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var askers sync.WaitGroup
	for _, url := range []string{"http://a.test/x", "https://a.test/y"} {
		client := l.client()
		askers.Go(func() {
			for ctx.Err() == nil {
				response, err := client.Get(url)
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || response.StatusCode != 200 || string(body) != "web" {
					t.Error(response.Status, string(body), err)
					return
				}
				asked.Add(1)
			}
		})
	}
	for round := 0; asked.Load() < 500 && !t.Failed(); round++ {
		l.lead("web", "", [][]string{{one}, {one, other}, {other}}[round%3]...)
		l.secretsBy["ns/a"].ResourceVersion = fmt.Sprint("v", round)
		l.apply()
	}
	stop()
	askers.Wait()
}

func TestBounds(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", says(t, "web"))
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	request, err := http.NewRequest(http.MethodGet, "http://a.test/", nil)
	require.NoError(t, err)
	request.Header.Set("Cookie", strings.Repeat("x", 2*maxHeader))
	// The network decides whether a client that sends without end can still read the answer.
	response, err := l.client().Do(request)
	if err == nil {
		response.Body.Close()
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, response.StatusCode)
	}
	connect, err := net.Dial("tcp", l.http)
	require.NoError(t, err)
	defer connect.Close()
	fmt.Fprint(connect, "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: a.test\r\n\r\n")
	response, err = http.ReadResponse(bufio.NewReader(connect), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusMethodNotAllowed, response.StatusCode)
}

func option(t *testing.T, conn syscall.Conn, level, name int) (value int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) }))
	require.NoError(t, err)
	return value
}

// TestSockets checks that connections to pods are marked for policies, and that the kernel ends
// those that a pod does not read.
func TestSockets(t *testing.T) {
	l := newLab(t)
	conn, err := l.proxy.transports[plain].DialContext(t.Context(), "tcp", says(t, ""))
	require.NoError(t, err)
	defer conn.Close()
	require.Equal(t, api.IngressMark, option(t, conn.(*net.TCPConn), unix.SOL_SOCKET, unix.SO_MARK))
	require.Equal(t, int(lostTimeout.Milliseconds()), option(t, conn.(*net.TCPConn), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT))
}
