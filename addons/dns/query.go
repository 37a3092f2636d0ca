package dns

import (
	"context"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"github.com/mote-k8s/mote/internal/fair"
)

// query is a query that is being answered. It holds its ResponseWriter, its context and its share
// of the processor in one allocation.
type query struct {
	dns.ResponseWriter
	server *dnsserver.Server
	work   fair.Work
	blocks bool // true if writing may wait for the client
}

// WriteMsg implements dns.ResponseWriter.
func (q *query) WriteMsg(m *dns.Msg) error {
	if q.blocks {
		q.work.Pause()
	}
	return q.ResponseWriter.WriteMsg(m)
}

// Write implements dns.ResponseWriter.
func (q *query) Write(m []byte) (int, error) {
	if q.blocks {
		q.work.Pause()
	}
	return q.ResponseWriter.Write(m)
}

// queryContext is the context that CoreDNS' plugins receive. It holds the same values as the
// contexts of CoreDNS' own servers.
type queryContext query

// queryKey is the context key of the query itself.
type queryKey struct{}

// Deadline implements context.Context. There is no deadline.
func (*queryContext) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

// Done implements context.Context. The context is never done.
func (*queryContext) Done() <-chan struct{} { return nil }

// Err implements context.Context.
func (*queryContext) Err() error { return nil }

// Value implements context.Context.
func (c *queryContext) Value(key any) any {
	switch key.(type) {
	case dnsserver.Key:
		return c.server
	case dnsserver.LoopKey:
		return 0
	case queryKey:
		return (*query)(c)
	}
	return nil
}

// pausing is a plugin that waits for other servers. While it waits, other queries use the
// processor.
type pausing struct{ plugin.Handler }

// ServeDNS implements plugin.Handler.
func (p pausing) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if q, ok := ctx.Value(queryKey{}).(*query); ok {
		q.work.Pause()
	}
	return p.Handler.ServeDNS(ctx, w, r)
}
