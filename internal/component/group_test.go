package component

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// part is a component for which the test decides when it is ready, whether it fails and how slowly
// it stops.
type part struct {
	name    string
	ready   chan struct{}
	fail    chan error
	stopFor time.Duration
	log     *journal
}

type journal struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (j *journal) add(s string) { j.mu.Lock(); j.lines = append(j.lines, s); j.mu.Unlock() }

func (j *journal) index(s string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, l := range j.lines {
		if l == s {
			return i
		}
	}
	return -1
}

func newPart(j *journal, name string) *part {
	return &part{name: name, ready: make(chan struct{}), fail: make(chan error, 1), log: j}
}

func (p *part) Name() string { return p.name }

func (p *part) Run(ctx context.Context) error {
	p.log.add("start " + p.name)
	select {
	case <-ctx.Done():
		time.Sleep(p.stopFor) // on the clock of synctest: costs no real time
		p.log.add("stop " + p.name)
		return nil
	case err := <-p.fail:
		return err
	}
}

func (p *part) Ready(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return errors.New("still warming up")
	}
}

func TestGroupStartsInOrderAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		store, api, kubelet, bridge := newPart(j, "store"), newPart(j, "api"), newPart(j, "kubelet"), newPart(j, "bridge")
		g, err := NewGroup(
			Unit{Component: store},
			Unit{Component: bridge},
			Unit{Component: api, After: []string{"store"}},
			Unit{Component: kubelet, After: []string{"api", "bridge"}},
		)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()

		synctest.Wait()
		require.Equal(t, -1, j.index("start api"), "api must wait for the store")
		require.Equal(t, []string{"store"}, g.Status()[2].WaitingFor)
		close(store.ready)
		close(bridge.ready)
		synctest.Wait()
		require.NotEqual(t, -1, j.index("start api"))
		require.Equal(t, -1, j.index("start kubelet"))
		close(api.ready)
		close(kubelet.ready)
		require.NoError(t, g.Ready(t.Context()))

		cancel()
		require.NoError(t, <-done)
		require.Less(t, j.index("stop kubelet"), j.index("stop api"))
		require.Less(t, j.index("stop api"), j.index("stop store"))
		require.Less(t, j.index("stop kubelet"), j.index("stop bridge"))
	})
}

func TestGroupEndsWithTheCauseWhenAPartFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		store, api := newPart(j, "store"), newPart(j, "api")
		g, err := NewGroup(Unit{Component: store}, Unit{Component: api, After: []string{"store"}})
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() { done <- g.Run(t.Context()) }()
		close(store.ready)
		synctest.Wait()

		api.fail <- errors.New("port taken")
		require.EqualError(t, <-done, "api: port taken")
		require.NotEqual(t, -1, j.index("stop store"), "the others are stopped")
		require.EqualError(t, g.Ready(t.Context()), "not ready: store (stopped), api (api: port taken)")
	})
}

func TestGroupTreatsAnEarlyReturnAsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPart(&journal{}, "p")
		g, err := NewGroup(Unit{Component: p})
		require.NoError(t, err)
		p.fail <- nil
		require.ErrorContains(t, g.Run(t.Context()), "p: returned while it should be running")
	})
}

func TestGroupNamesAPartThatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPart(&journal{}, "slow")
		p.stopFor = time.Minute
		g, err := NewGroup(Unit{Component: p})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var logged strings.Builder
		before := slog.Default()
		defer slog.SetDefault(before)
		slog.SetDefault(slog.New(slog.NewTextHandler(&logged, nil)))
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		cancel()
		require.NoError(t, <-done) // after an exit with an error a service manager would start mote again
		require.Contains(t, logged.String(), "stuck=[slow] limit=10s")
		time.Sleep(time.Minute) // let the component end before synctest's bubble does
	})
}

func TestGroupReadySaysWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPart(&journal{}, "p")
		g, err := NewGroup(Unit{Component: p})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		wait, stop := context.WithTimeout(t.Context(), 2*reportInterval)
		defer stop()
		require.EqualError(t, g.Ready(wait), "not ready: p (still warming up)")
		cancel()
		require.NoError(t, <-done)
	})
}

func TestNewGroupRefusesDisorder(t *testing.T) {
	j := &journal{}
	_, err := NewGroup(Unit{Component: newPart(j, "a")}, Unit{Component: newPart(j, "a")})
	require.ErrorContains(t, err, "listed twice")
	_, err = NewGroup(Unit{Component: newPart(j, "a"), After: []string{"b"}}, Unit{Component: newPart(j, "b")})
	require.True(t, err != nil && strings.Contains(err.Error(), "not listed before it"))
}
