package component

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// stopTimeout bounds how long the group waits for one unit to stop before it continues with the
// rest: long enough for the slowest well-behaved component (kube-apiserver drains in about 1 s),
// short enough that a service manager's own limit (90 s for systemd) is never reached.
const stopTimeout = 10 * time.Second

// reportInterval is the interval at which the log names a unit that is not yet ready.
const reportInterval = 15 * time.Second

// State is the state of a unit; the diagram at Component shows the order.
type State string

// The states of a unit.
const (
	Waiting  State = "waiting"
	Starting State = "starting"
	Ready    State = "ready"
	Stopped  State = "stopped"
	Failed   State = "failed"
)

// Status is one unit's state, for people and for the status socket.
type Status struct {
	Name       string    `json:"name"`
	State      State     `json:"state"`
	Since      time.Time `json:"since"`
	WaitingFor []string  `json:"waitingFor,omitempty"` // unit names, while Waiting
	Error      string    `json:"error,omitempty"`      // while Starting or Failed
	Trouble    []string  `json:"trouble,omitempty"`    // of a Troubled component
}

// Group runs units in the order that their After lists require.
type Group struct {
	units map[string]*unit
	order []string // as given, for Status

	// mu guards every unit's state, since and err.
	mu sync.Mutex
}

type unit struct {
	Unit
	ready  chan struct{} // closed when Ready
	done   chan struct{} // closed when Run has returned, or was not called and never will be
	cancel context.CancelFunc
	ctx    context.Context

	state State
	since time.Time
	err   error
}

// NewGroup checks that names are unique and that After names units listed earlier, which rules out
// cycles.
func NewGroup(units ...Unit) (*Group, error) {
	g := &Group{units: make(map[string]*unit, len(units))}
	for _, u := range units {
		name := u.Name()
		if _, ok := g.units[name]; ok {
			return nil, fmt.Errorf("component %q is listed twice", name)
		}
		for _, after := range u.After {
			if _, ok := g.units[after]; !ok {
				return nil, fmt.Errorf("component %q starts after %q, which is not listed before it", name, after)
			}
		}
		g.units[name] = &unit{
			Unit:  u,
			ready: make(chan struct{}),
			done:  make(chan struct{}),
			state: Waiting,
			since: time.Now(),
		}
		g.order = append(g.order, name)
	}
	return g, nil
}

// Run starts every unit and blocks until ctx ends or a unit returns. Then it stops all of them,
// dependents first, and returns the cause: nil when ctx ended. Errors during the stop are only
// logged: a requested stop must not look like a failure, after which a service manager would start
// mote again.
func (g *Group) Run(ctx context.Context) error {
	// Units get contexts that do not end with ctx: stop ends them in order.
	base := context.WithoutCancel(ctx)
	failed := make(chan error, len(g.units))
	starting, stopStarting := context.WithCancel(ctx)
	defer stopStarting()

	for _, name := range g.order {
		u := g.units[name]
		u.ctx, u.cancel = context.WithCancel(base)
		go g.run(starting, u, failed)
	}

	var cause error
	select {
	case <-ctx.Done():
	case cause = <-failed:
		slog.Error("component ended, stopping", "component", "mote", "cause", cause)
	}
	stopStarting()
	if stuck := g.stop(); len(stuck) > 0 {
		slog.Error("components did not stop in time", "component", "mote", "stuck", stuck, "limit", stopTimeout)
	}
	for {
		select {
		case err := <-failed:
			slog.Warn("component ended with an error while stopping", "component", "mote", "err", err)
		default:
			return cause
		}
	}
}

// run waits for u's predecessors, runs u, and sends its failure.
func (g *Group) run(starting context.Context, u *unit, failed chan<- error) {
	defer close(u.done)
	for _, after := range u.After {
		select {
		case <-g.units[after].ready:
		case <-starting.Done():
			g.set(u, Stopped, nil)
			return
		}
	}
	if starting.Err() != nil {
		g.set(u, Stopped, nil)
		return
	}
	g.set(u, Starting, nil)
	started := time.Now()
	go g.awaitReady(u, started)

	err := u.Run(u.ctx)
	switch {
	case u.ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
		g.set(u, Stopped, nil)
	case err == nil:
		err = errors.New("returned while it should be running")
		fallthrough
	default:
		err = fmt.Errorf("%s: %w", u.Name(), err)
		g.set(u, Failed, err)
		failed <- err
	}
}

// awaitReady marks u ready as soon as it serves. Until then it logs what is missing.
func (g *Group) awaitReady(u *unit, started time.Time) {
	for {
		ctx, cancel := context.WithTimeout(u.ctx, reportInterval)
		err := u.Ready(ctx)
		cancel()
		if err == nil {
			// A unit that failed meanwhile stays failed.
			if g.change(u, Starting, Ready, nil) {
				close(u.ready)
				slog.Info("ready", "component", u.Name(), "after", time.Since(started).Round(time.Millisecond))
			}
			return
		}
		select {
		case <-u.ctx.Done():
			return
		case <-u.done:
			return
		default:
		}
		if g.change(u, Starting, Starting, err) {
			slog.Warn("not ready yet", "component", u.Name(), "after", time.Since(started).Round(time.Second), "missing", err)
		}
	}
}

// stop stops the units, each after all units that started after it, siblings together. It returns
// the names of those that do not stop.
func (g *Group) stop() []string {
	dependents := make(map[string][]*unit)
	for _, u := range g.units {
		for _, after := range u.After {
			dependents[after] = append(dependents[after], u)
		}
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards stuck
		stuck []string
		gone  = make(map[string]chan struct{}, len(g.units))
	)
	for name := range g.units {
		gone[name] = make(chan struct{})
	}
	for name, u := range g.units {
		wg.Go(func() {
			defer close(gone[name])
			for _, d := range dependents[name] {
				<-gone[d.Name()]
			}
			u.cancel()
			select {
			case <-u.done:
			case <-time.After(stopTimeout):
				mu.Lock()
				stuck = append(stuck, name)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(stuck)
	return stuck
}

// Ready blocks until every unit is ready. When ctx ends first, or a unit has failed, it returns an
// error that names the units that are not ready.
func (g *Group) Ready(ctx context.Context) error {
	for _, name := range g.order {
		u := g.units[name]
		select {
		case <-u.ready:
			continue
		default:
		}
		select {
		case <-u.ready:
		case <-u.done:
			return g.missing()
		case <-ctx.Done():
			return g.missing()
		}
	}
	return nil
}

func (g *Group) missing() error {
	var parts []string
	for _, s := range g.Status() {
		switch {
		case s.State == Ready:
		case s.Error != "":
			parts = append(parts, fmt.Sprintf("%s (%s)", s.Name, s.Error))
		default:
			parts = append(parts, fmt.Sprintf("%s (%s)", s.Name, s.State))
		}
	}
	return fmt.Errorf("not ready: %s", strings.Join(parts, ", "))
}

// Status returns each unit's state in the order in which the units were given.
func (g *Group) Status() []Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Status, 0, len(g.order))
	for _, name := range g.order {
		u := g.units[name]
		s := Status{Name: name, State: u.state, Since: u.since}
		if u.err != nil {
			s.Error = u.err.Error()
		}
		if troubled, ok := u.Component.(Troubled); ok {
			s.Trouble = troubled.Trouble()
		}
		if u.state == Waiting {
			for _, after := range u.After {
				if g.units[after].state != Ready {
					s.WaitingFor = append(s.WaitingFor, after)
				}
			}
		}
		out = append(out, s)
	}
	return out
}

func (g *Group) set(u *unit, to State, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.become(u, to, err)
}

// change moves u to state to if it is in state from, and reports whether it did.
func (g *Group) change(u *unit, from, to State, err error) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if u.state != from {
		return false
	}
	g.become(u, to, err)
	return true
}

// become moves u to state to. The caller holds mu.
func (g *Group) become(u *unit, to State, err error) {
	if u.state != to {
		u.since = time.Now()
	}
	u.state, u.err = to, err
}
