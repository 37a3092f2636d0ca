package dns

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/transport"

	"github.com/mote-k8s/mote/internal/fair"
	"github.com/mote-k8s/mote/internal/limit"
)

// drainTimeout is the time that running queries get to finish when their configuration or the
// server ends.
const drainTimeout = 5 * time.Second

// front owns the sockets of plain DNS and passes queries to the active configuration. It exists
// because CoreDNS' own sockets have no limits: not for connections, not for the queries on a
// connection, and not for concurrent queries.
//
//	plan ── Corefile read ──► adopt, build ── old one ends or first start ──► commit ──► retire
//	                            └── Corefile refused ──► abandon
//
// A block keeps its zones and plugins from CoreDNS. adopt takes the addresses out of the block's
// configuration before CoreDNS makes servers from it. build then makes the servers of the same
// configuration, without sockets.
type front struct {
	gate    *fair.Gate
	budgets *limit.Budgets

	// mu guards the fields below, except the state inside each socket.
	mu      sync.Mutex
	sockets map[string]*socket
	pages   map[string]*page
	next    *generation // nil when no Corefile is being tried
	current *generation // nil before the first start
}

// generation holds the servers and addresses of one Corefile.
type generation struct {
	blocks  []block
	servers map[string]*dnsserver.Server // by listening address, with "dns://"
	pages   map[string]bool              // addresses of metrics
	opened  []string                     // addresses that this generation opened
	active  atomic.Int64
	retired atomic.Bool
	ended   sync.Once
	idle    chan struct{} // closed when the generation is retired and has no running query
}

// block is a server block of plain DNS with its configurations, one for each key.
type block struct {
	hosts   []string
	configs []*dnsserver.Config
}

func newFront(budgets *limit.Budgets) *front {
	return &front{
		gate: fair.New(fair.Config{
			Component: Name, Work: "queries", Running: fair.Processors(), Total: maxQueries, PerSource: maxQueriesPerSource,
		}),
		budgets: budgets, sockets: make(map[string]*socket), pages: make(map[string]*page),
	}
}

// plan begins a generation. Setup functions add what they adopt to it.
func (f *front) plan() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = &generation{
		idle: make(chan struct{}), servers: make(map[string]*dnsserver.Server), pages: make(map[string]bool),
	}
}

// showAt adds an address at which the metrics are served.
func (f *front) showAt(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next.pages[address] = true
}

// adopt takes over a block if its transport is plain DNS.
func (f *front) adopt(c *caddy.Controller) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.next
	if len(g.blocks) == 0 {
		c.OnStartup(func() error { return f.build(g) })
		c.OnShutdown(func() error { f.retire(g); return nil })
	}
	var b block
	for i := range c.ServerBlockKeys {
		key := *c
		key.ServerBlockKeyIndex = i
		b.configs = append(b.configs, dnsserver.GetConfig(&key))
	}
	first := b.configs[0]
	for _, config := range b.configs {
		if config.Transport != first.Transport && (config.Transport == transport.DNS || first.Transport == transport.DNS) {
			return c.Err("a server block answers plain DNS or other protocols, not both; write two blocks")
		}
	}
	if first.Transport != transport.DNS {
		return nil
	}
	b.hosts, first.ListenHosts = first.ListenHosts, nil
	g.blocks = append(g.blocks, b)
	return nil
}

// build makes the servers of a generation and opens the sockets that are not open yet. It runs
// before the startup functions of the plugins, because those look up each other's handlers.
func (f *front) build(g *generation) error {
	groups := make(map[string][]*dnsserver.Config)
	for _, b := range g.blocks {
		for _, config := range b.configs {
			config.ListenHosts = b.hosts
			for _, host := range b.hosts {
				address := listenAddress(host, config.Port)
				for _, other := range groups[address] {
					if other.Zone == config.Zone {
						return fmt.Errorf("cannot serve %s%s:%s on %s - it is already defined", transportPrefix, config.Zone, config.Port, host)
					}
				}
				groups[address] = append(groups[address], config)
			}
		}
		pauseForward(b.configs)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ctx := context.Background() // nothing here waits
	for address, group := range groups {
		server, err := dnsserver.NewServer(address, group)
		if err != nil {
			return err
		}
		g.servers[address] = server
		if f.sockets[address] != nil {
			continue
		}
		if f.sockets[address], err = openSocket(ctx, strings.TrimPrefix(address, transportPrefix), f.gate, f.budgets); err != nil {
			delete(f.sockets, address)
			return err
		}
		g.opened = append(g.opened, address)
	}
	return f.openPages(ctx, g)
}

// openPages opens the metrics pages of a generation that are not open yet. The caller holds f.mu.
func (f *front) openPages(ctx context.Context, g *generation) error {
	for address := range g.pages {
		if f.pages[address] != nil {
			continue
		}
		p, err := openPage(ctx, address, f.budgets)
		if err != nil {
			return err
		}
		f.pages[address] = p
		g.opened = append(g.opened, address)
	}
	return nil
}

// commit activates the generation that was built, and closes the sockets that it does not use.
func (f *front) commit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		return
	}
	f.current, f.next = f.next, nil
	for address, s := range f.sockets {
		if server := f.current.servers[address]; server != nil {
			s.serve(&served{server: server, generation: f.current})
		} else {
			f.shut(address)
		}
	}
	for address := range f.pages {
		if !f.current.pages[address] {
			f.shut(address)
		}
	}
}

// shut closes a socket or page. The caller holds f.mu.
func (f *front) shut(address string) {
	if s := f.sockets[address]; s != nil {
		delete(f.sockets, address)
		s.close()
	}
	if p := f.pages[address]; p != nil {
		delete(f.pages, address)
		p.close()
	}
}

// abandon drops the generation that was being tried, and closes the sockets that it opened.
func (f *front) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		return
	}
	for _, address := range f.next.opened {
		f.shut(address)
	}
	f.next = nil
}

// retire runs before the plugins of a generation end. From here on queries go to the next
// generation. Running queries get drainTimeout to finish.
func (f *front) retire(g *generation) {
	f.mu.Lock()
	ends := f.current == g
	f.mu.Unlock()
	if !ends {
		return // it was refused
	}
	f.commit()
	g.drain()
}

// close closes all sockets and pages. No query is answered after it.
func (f *front) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	var closing sync.WaitGroup
	for _, s := range f.sockets {
		closing.Go(s.close)
	}
	for _, p := range f.pages {
		closing.Go(p.close)
	}
	closing.Wait()
	clear(f.sockets)
	clear(f.pages)
}

// enter counts a query as running. It returns false if the generation has ended and another one is
// active.
func (g *generation) enter() bool {
	g.active.Add(1)
	if g.retired.Load() {
		g.leave()
		return false
	}
	return true
}

func (g *generation) leave() {
	if g.active.Add(-1) == 0 && g.retired.Load() {
		g.ended.Do(func() { close(g.idle) })
	}
}

// drain waits for the running queries. At this point the sockets use another generation or are
// closed.
func (g *generation) drain() {
	g.retired.Store(true)
	if g.active.Load() == 0 {
		return
	}
	select {
	case <-g.idle:
	case <-time.After(drainTimeout):
	}
}

const transportPrefix = transport.DNS + "://"

// pauseForward makes a query give up its turn while it is forwarded. All configurations of a block
// have the same plugins.
func pauseForward(configs []*dnsserver.Config) {
	plugins := make([]plugin.Plugin, len(configs[0].Plugin))
	for i, add := range configs[0].Plugin {
		plugins[i] = func(next plugin.Handler) plugin.Handler {
			h := add(next)
			if h.Name() == "forward" {
				return pausing{h}
			}
			return h
		}
	}
	for _, config := range configs {
		config.Plugin = plugins
	}
}
