package server

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apiserver/pkg/endpoints/request"
)

func TestWatchesAreBounded(t *testing.T) {
	gate := newWatchGate(leastWatches * watchMemory)
	release := make(chan struct{})
	begun := make(chan struct{}, leastWatches)
	bound := &watchBound{gate, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-release
	})}
	ended := make(chan int, 2*leastWatches)
	start := func(verb, from string) {
		ctx := request.WithRequestInfo(t.Context(), &request.RequestInfo{IsResourceRequest: true, Verb: verb, Resource: "pods"})
		ctx = context.WithValue(ctx, http.LocalAddrContextKey, net.Addr(&net.TCPAddr{IP: net.IPv4(10, 42, 0, 1), Port: 6443}))
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/pods?watch=1", nil)
		r.RemoteAddr = from
		go func() {
			w := httptest.NewRecorder()
			bound.ServeHTTP(w, r)
			ended <- w.Code
		}()
	}
	begin := func(verb, from string) {
		t.Helper()
		start(verb, from)
		<-begun
	}
	refuse := func(from string) {
		t.Helper()
		start("watch", from)
		require.Equal(t, http.StatusTooManyRequests, <-ended)
	}
	const half = leastWatches / 2
	for range half {
		begin("watch", "10.42.0.7:40000")
	}
	refuse("10.42.0.7:40001")
	require.Contains(t, gate.Trouble(), "1 watches refused")
	begin("list", "10.42.0.7:40001")
	for range half {
		begin("watch", "10.42.0.8:40000")
	}
	refuse("10.42.0.9:40000")
	begin("watch", "127.0.0.1:40000") // mote's own components
	begin("watch", "10.42.0.1:40000")
	close(release)
	for range leastWatches + 3 {
		require.Equal(t, http.StatusOK, <-ended)
	}
	require.Zero(t, gate.UnderWay())
}
