package ingress

import (
	"crypto/tls"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/fair"
	"github.com/mote-k8s/mote/internal/limit"
)

// TestConnectionsTakeTurns: between two reads of HTTP/2 only as many connections compute as may,
// the sources one after another, and a connection that is closed gives its turn back wherever its
// reader is.
func TestConnectionsTakeTurns(t *testing.T) {
	gate := fair.New(fair.Config{Running: 1, Total: math.MaxInt64, PerSource: math.MaxInt64})
	listener, err := limit.New().Listen(t.Context(), "127.0.0.1:0", limit.Config{Connections: 100, Own: 100})
	require.NoError(t, err)
	defer listener.Close()
	turns := turnListener{listener, gate, func(remote, _ net.Addr) netip.Addr { return remote.(*net.TCPAddr).AddrPort().Addr() }}

	type read struct {
		conn   *turnConn
		source string
	}
	reads, next, ended := make(chan read), make(chan bool), make(chan struct{}, 100)
	start := func(source, text string) (client net.Conn, accepted *turnConn) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		client, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { client.Close() })
		_, err = io.WriteString(client, text)
		require.NoError(t, err)
		conn, err := turns.Accept()
		require.NoError(t, err)
		accepted = conn.(*turnConn)
		go func() {
			defer func() { ended <- struct{}{} }()
			buffer := make([]byte, len(prefaceStart))
			for {
				if _, err := io.ReadFull(conn, buffer); err != nil {
					return
				}
				if accepted.begun { // the preface itself is read without a turn
					reads <- read{accepted, source}
					if !<-next {
						return
					}
				}
			}
		}()
		return client, accepted
	}

	// One connection holds the turn; more of the same source and one of another wait for it.
	const greedy, modest = "127.0.0.7", "127.0.0.8"
	start(greedy, "PRI data")
	holder := <-reads
	var waiting []*turnConn
	for range 20 {
		_, c := start(greedy, "PRI data")
		waiting = append(waiting, c)
	}
	_, other := start(modest, "PRI data")
	for _, c := range append(waiting, other) {
		require.Eventually(t, func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.reading }, 10*time.Second, time.Millisecond)
	}
	require.Eventually(t, func() bool { return gate.UnderWay() == 22 }, 10*time.Second, time.Millisecond)
	next <- true // the holder reads again, which waits for the client
	order := []string{(<-reads).source}
	next <- true
	order = append(order, (<-reads).source)
	require.Contains(t, order, modest, "its turn comes after one of the other source")

	// A reader that never reads again, as net/http's does when it gives a connection up.
	next <- false
	<-ended
	require.NoError(t, holder.conn.Close())
	<-ended
	for _, c := range append(waiting, other) {
		require.NoError(t, c.Close())
	}
	for range 19 {
		select {
		case r := <-reads:
			_ = r
			next <- false
			<-ended
		case <-ended:
		}
	}
	require.Eventually(t, func() bool { return gate.UnderWay() == 0 }, 10*time.Second, time.Millisecond, "all turns and works are given back")
}

// TestOnlyHTTP2TakesTurns asks over both protocols, with and without TLS.
func TestOnlyHTTP2TakesTurns(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "good") }))
	l.add(`{defaultBackend: ` + toWeb + `}`)
	l.apply()
	for name, c := range map[string]struct {
		url   string
		http2 bool
	}{
		"HTTP/1.1":          {"http://" + l.http, false},
		"HTTP/2":            {"http://" + l.http, true},
		"HTTP/1.1 with TLS": {"https://" + l.https, false},
		"HTTP/2 with TLS":   {"https://" + l.https, true},
	} {
		t.Run(name, func(t *testing.T) {
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)}
			transport.Protocols.SetHTTP1(!c.http2)
			transport.Protocols.SetHTTP2(c.http2)
			transport.Protocols.SetUnencryptedHTTP2(c.http2)
			response, err := (&http.Client{Transport: transport}).Get(c.url)
			require.NoError(t, err)
			body, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.Equal(t, "good", string(body))
			if c.http2 {
				require.Equal(t, 2, response.ProtoMajor)
				require.EqualValues(t, 1, l.proxy.reads.UnderWay())
			} else {
				require.Zero(t, l.proxy.reads.UnderWay())
			}
			transport.CloseIdleConnections()
			require.Eventually(t, func() bool { return l.proxy.reads.UnderWay() == 0 }, 10*time.Second, time.Millisecond)
		})
	}
}
