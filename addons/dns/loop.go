package dns

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/miekg/dns"
)

const (
	// loopRounds is how often our own probe must come back to us: a client's retry makes two of one.
	loopRounds = 3
	// loopCheck is how long a round trip through other servers may take.
	loopCheck = 2 * time.Second
	// A probe that we do not see at all was sent before we listen, or to the server that we replace.
	loopTries, loopRetry = 50, 100 * time.Millisecond
	// loopRecheck is how often a loop that was found is looked for again.
	loopRecheck = 30 * time.Second
)

// loop finds out whether what we forward comes back to us, through a resolver on this machine that asks the
// cluster. Upstream's plugin of that name ends the process. This one answers "server failure" in place of
// forwarding while there is a loop, and tells users.
//
//	checking ── probe seen loopRounds times ──► looping (refuses) ── loopRecheck ──► checking
//	checking ── loopCheck passed ──► quiet (until the configuration changes)
type loop struct {
	next    plugin.Handler
	zone    string
	name    string               // the probe's question, which nobody else asks
	addr    string               // ours
	tell    func(message string) // "" when there is no loop any more
	seen    atomic.Int32
	looping atomic.Bool
}

func (s *Server) setupLoop(c *caddy.Controller) error {
	c.Next()
	if c.NextArg() {
		return plugin.Error("loop", c.ArgErr())
	}
	zone := "."
	if len(c.ServerBlockKeys) > 0 {
		if zones := plugin.Host(c.ServerBlockKeys[0]).NormalizeExact(); len(zones) > 0 {
			zone = zones[0]
		}
	}
	config := dnsserver.GetConfig(c)
	l := &loop{zone: zone, name: dns.CanonicalName(dnsutil.Join(rand.Text(), zone)), tell: s.say(aboutLoop+" "+zone, reasonLoop)}
	config.AddPlugin(func(next plugin.Handler) plugin.Handler {
		l.next = next
		return l
	})
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	c.OnStartup(func() error {
		l.addr = net.JoinHostPort(config.ListenHosts[0], config.Port)
		watching.Go(func() { l.watch(ctx) })
		return nil
	})
	c.OnShutdown(func() error { cancel(); watching.Wait(); return nil })
	return nil
}

func (*loop) Name() string { return "loop" }

func (l *loop) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	question := r.Question[0]
	probe := question.Qtype == dns.TypeHINFO && dns.IsSubDomain(l.name, dns.CanonicalName(question.Name))
	switch {
	case probe && l.seen.Add(1) >= loopRounds:
		return dns.RcodeServerFailure, nil // cuts the probe itself
	case !probe && l.looping.Load():
		return dns.RcodeServerFailure, nil
	}
	return plugin.NextOrFailure(l.Name(), l.next, ctx, w, r)
}

// watch looks for a loop until there is none or ctx ends.
func (l *loop) watch(ctx context.Context) {
	defer l.tell("")
	for l.check(ctx) {
		l.looping.Store(true)
		// Each time, as the end of the server that we replace may have taken it back.
		l.tell(fmt.Sprintf("names in zone %q are not forwarded: the servers that they are forwarded to ask the cluster again; "+
			"name others in the ConfigMap %s, or have them forward only the cluster's domain here", l.zone, configName))
		select {
		case <-ctx.Done():
			return
		case <-time.After(loopRecheck):
		}
	}
	l.looping.Store(false)
}

// check sends the probe until we see it, and tells whether it came back often enough.
func (l *loop) check(ctx context.Context) bool {
	l.seen.Store(0)
	for range loopTries {
		l.probe(ctx)
		if l.seen.Load() > 0 {
			break
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(loopRetry):
		}
	}
	return l.seen.Load() >= loopRounds
}

// probe asks ourselves. The answer does not matter, nor whether there is one.
func (l *loop) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, loopCheck)
	defer cancel()
	question := new(dns.Msg).SetQuestion(l.name, dns.TypeHINFO)
	_, _, _ = new(dns.Client).ExchangeContext(ctx, question, l.addr)
}
