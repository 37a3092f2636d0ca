package server

import (
	"net"
	"net/http"
	"net/netip"

	"k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"

	"github.com/mote-k8s/mote/internal/fair"
)

const (
	// watchMemory is the part of the memory limit that counts for one watch, in bytes. A watch
	// takes some 20 KiB (test/siege, "watches"), so all of them take a sixth of the limit at most.
	watchMemory = 128 << 10
	// mostWatches and leastWatches bound the watches of all clients, mostSourceWatches those of one
	// client address. A controller of a cluster with many custom resources has some hundred
	// watches.
	mostWatches, leastWatches, mostSourceWatches = 8192, 1024, 1024
)

// watchBound refuses watches over a number. A watch lives for half an hour or more and costs memory
// and a goroutine for all of that time; upstream bounds requests under way without watches, and
// priority and fairness counts a watch only while it begins. Programs of this machine are not
// bounded.
type watchBound struct {
	gate *fair.Gate
	next http.Handler
}

// newWatchGate returns the gate for the watches of all clients. memory is the memory limit of the
// process, 0 for none.
func newWatchGate(memory int64) *fair.Gate {
	total := int64(mostWatches)
	if memory > 0 {
		total = min(max(memory/watchMemory, leastWatches), mostWatches)
	}
	return fair.New(fair.Config{
		Component: "kube-apiserver", Work: "watches", Running: int(total),
		Total: total, PerSource: min(total/2, mostSourceWatches),
	})
}

// boundWatches puts a watchBound between upstream's filters and the API, as boundLists does.
func boundWatches(config *genericapiserver.Config, gate *fair.Gate) {
	build := config.BuildHandlerChainFunc
	config.BuildHandlerChainFunc = func(api http.Handler, c *genericapiserver.Config) http.Handler {
		return build(&watchBound{gate, api}, c)
	}
}

// ServeHTTP implements http.Handler.
func (b *watchBound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	info, ok := request.RequestInfoFrom(r.Context())
	if !ok || !info.IsResourceRequest || info.Verb != "watch" {
		b.next.ServeHTTP(w, r)
		return
	}
	from := sourceOf(r)
	if !from.IsValid() {
		b.next.ServeHTTP(w, r)
		return
	}
	var work fair.Work
	if !b.gate.Begin(&work, from, 1) {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "Too many watches, try again later; close some, or watch all namespaces at once.", http.StatusTooManyRequests)
		return
	}
	defer work.End()
	b.next.ServeHTTP(w, r)
}

// sourceOf returns the client address that counts for r. It is the zero address for programs of
// this machine.
func sourceOf(r *http.Request) netip.Addr {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // no connection from another machine
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return fair.Source(net.TCPAddrFromAddrPort(remote), local)
}
