// Package fair shares the processor and the memory of a component between its clients, so that no
// client takes them from the others or from the rest of the process.
//
// A Gate has three limits. Running is how many pieces of work may compute at once. Go runs
// goroutines in the order in which they become ready, without priorities: 500 ready ones delay each
// step of a request to the API by 500 turns, a few do not. Total is the weight of all work under
// way, and PerSource that of one source address: work over these limits is refused at once. When
// more work is ready than may run, the sources take turns, one piece of work each (J. Nagle, "On
// Packet Switches with Infinite Storage", RFC 970). So a client with few requests does not wait
// behind one with many.
//
//	var w fair.Work
//	if !gate.Begin(&w, source, 1) { refuse }
//	defer w.End()
//	w.Run()   // waits for a turn
//	...       // compute
//	w.Pause() // before a wait for the network, which uses no processor
//
// The caller chooses the unit of weight: queries, bytes. The zero address stands for this machine's
// own programs, which only Total limits. Refusals are counted, logged once a minute, and reported
// by Trouble. A Gate is safe for concurrent use. A Work is for one goroutine at a time, except for
// Pause, which any goroutine may call at any time.
package fair

import (
	"net/netip"
	"runtime"
	"sync"
)

// Config configures a Gate.
type Config struct {
	// Component is the log's component for refusals; Work is the plural of the refused work, such
	// as "queries".
	Component, Work string
	// Running is the number of pieces of work that compute at once.
	Running int
	// Total and PerSource limit the weight of work under way.
	Total, PerSource int64
}

// Processors returns the limit Running for a component that strangers can reach: half of the
// processors that Go uses, so that the API has the other half. With two processors it is two,
// because a limit of one makes each DNS query cost a fifth more time; the API's goroutines then
// wait for one piece of work at most.
func Processors() int {
	n := runtime.GOMAXPROCS(0)
	return max(min(n, 2), n/2)
}

// Gate admits work and assigns turns. Create it with New.
type Gate struct {
	cfg Config

	mu      sync.Mutex // guards the fields below, and those of sources and works
	free    int        // number of free turns, of Running
	weight  int64      // of the work under way
	sources map[netip.Addr]*source
	turns   queue[*source] // sources with waiting work, each once
	spare   []*source
	journal journal
}

// source is a client address with work under way.
type source struct {
	address netip.Addr
	weight  int64
	waiting queue[*Work]
}

// maxSpare is the number of sources without work that are kept for reuse.
const maxSpare = 64

// New makes a gate.
func New(c Config) *Gate {
	return &Gate{cfg: c, free: c.Running, sources: make(map[netip.Addr]*source)}
}

// Work is one piece of work: a query, a request. Its zero value has not begun.
type Work struct {
	gate   *Gate
	source *source // nil before Begin and after End
	weight int64
	runs   bool
	turn   chan struct{} // made by the first wait
}

// Begin admits work of a weight from a source, or refuses it because of a limit.
func (g *Gate) Begin(w *Work, from netip.Addr, weight int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[from]
	var has int64
	if s != nil {
		has = s.weight
	}
	if !g.fits(from, has, weight) {
		g.journal.refused(g.cfg, from)
		return false
	}
	if s == nil {
		s = g.newSource(from)
	}
	s.weight += weight
	g.weight += weight
	w.gate, w.source, w.weight = g, s, weight
	return true
}

// Full reports whether Begin would refuse work, and counts that as a refusal. With it, callers need
// not create work that would be refused.
func (g *Gate) Full(from netip.Addr, weight int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	var has int64
	if s := g.sources[from]; s != nil {
		has = s.weight
	}
	if g.fits(from, has, weight) {
		return false
	}
	g.journal.refused(g.cfg, from)
	return true
}

func (g *Gate) fits(from netip.Addr, has, weight int64) bool {
	return g.weight+weight <= g.cfg.Total && (!from.IsValid() || has+weight <= g.cfg.PerSource)
}

// Refused returns how often work was refused since New.
func (g *Gate) Refused() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.journal.total
}

// Trouble describes the refusals of the last minutes; "" means none.
func (g *Gate) Trouble() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.journal.trouble(g.cfg)
}

// UnderWay returns the weight of the work under way.
func (g *Gate) UnderWay() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.weight
}

// Run waits for the work's turn. It does nothing for work that runs already.
func (w *Work) Run() {
	g := w.gate
	g.mu.Lock()
	if w.runs {
		g.mu.Unlock()
		return
	}
	if g.free > 0 {
		g.free--
		w.runs = true
		g.mu.Unlock()
		return
	}
	if w.turn == nil {
		w.turn = make(chan struct{}, 1)
	}
	if w.source.waiting.len() == 0 {
		g.turns.push(w.source)
	}
	w.source.waiting.push(w)
	g.mu.Unlock()
	<-w.turn
}

// Pause passes the work's turn to other work. It does nothing for work that does not run.
func (w *Work) Pause() {
	if w.gate == nil {
		return
	}
	w.gate.mu.Lock()
	defer w.gate.mu.Unlock()
	w.gate.pause(w)
}

// End ends the work. It may be called again.
func (w *Work) End() {
	g := w.gate
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pause(w)
	s := w.source
	if s == nil {
		return
	}
	w.source = nil
	g.weight -= w.weight
	if s.weight -= w.weight; s.weight == 0 {
		delete(g.sources, s.address)
		if len(g.spare) < maxSpare {
			g.spare = append(g.spare, s)
		}
	}
}

// pause passes the turn of w to the next source. The caller holds g.mu.
func (g *Gate) pause(w *Work) {
	if !w.runs {
		return
	}
	w.runs = false
	if g.turns.len() == 0 {
		g.free++
		return
	}
	s := g.turns.pop()
	next := s.waiting.pop()
	if s.waiting.len() > 0 {
		g.turns.push(s)
	}
	next.runs = true
	next.turn <- struct{}{}
}

func (g *Gate) newSource(address netip.Addr) *source {
	s := &source{}
	if n := len(g.spare); n > 0 {
		s, g.spare = g.spare[n-1], g.spare[:n-1]
	}
	s.address = address
	g.sources[address] = s
	return s
}
