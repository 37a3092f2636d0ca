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
	// loopRounds is the number of times that mote's own probe must come back to count as a loop. A
	// retry by a client makes two probes of one.
	loopRounds = 3
	// loopCheck limits a round trip through other servers.
	loopCheck = 2 * time.Second
	// loopTries and loopRetry repeat a probe that does not arrive at all. Such a probe was sent
	// before this server listened, or went to the server that this one replaces.
	loopTries, loopRetry = 50, 100 * time.Millisecond
	// loopRecheck is the interval at which a detected loop is checked again.
	loopRecheck = 30 * time.Second
)

// loop detects whether forwarded queries come back to this server through a resolver on this
// machine that asks the cluster. The upstream plugin of the same name ends the process. This one
// answers "server failure" instead of forwarding while there is a loop, and reports the loop to
// users.
//
//	checking ── probe seen loopRounds times ──► looping (refuses) ── loopRecheck ──► checking
//	checking ── loopCheck passed ──► quiet (until the configuration changes)
type loop struct {
	next    plugin.Handler
	zone    string
	name    string               // the probe's question, a random name that no client asks for
	addr    string               // the address of this server
	tell    func(message string) // reports the loop; "" reports that it is over
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
		return dns.RcodeServerFailure, nil // stops the probe itself
	case !probe && l.looping.Load():
		return dns.RcodeServerFailure, nil
	}
	return plugin.NextOrFailure(l.Name(), l.next, ctx, w, r)
}

// watch checks for a loop until there is none or ctx ends.
func (l *loop) watch(ctx context.Context) {
	defer l.tell("")
	for l.check(ctx) {
		l.looping.Store(true)
		// Report it each time: the end of the server that this one replaces may have cleared the
		// report.
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

// check sends the probe until it arrives, and reports whether it came back often enough.
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

// probe sends the probe to this server. The answer does not matter, and neither does a missing
// answer.
func (l *loop) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, loopCheck)
	defer cancel()
	question := new(dns.Msg).SetQuestion(l.name, dns.TypeHINFO)
	_, _, _ = new(dns.Client).ExchangeContext(ctx, question, l.addr)
}
