package fair_test

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/fair"
)

var (
	greedy = netip.MustParseAddr("10.42.0.7")
	modest = netip.MustParseAddr("10.42.0.8")
)

func TestBounds(t *testing.T) {
	g := fair.New(fair.Config{Work: "queries", Running: 1, Total: 10, PerSource: 4})
	begin := func(from netip.Addr, weight int64) *fair.Work {
		w := &fair.Work{}
		if !g.Begin(w, from, weight) {
			return nil
		}
		return w
	}
	first := begin(greedy, 3)
	require.NotNil(t, first)
	require.Nil(t, begin(greedy, 2), "over its source's bound")
	require.True(t, g.Full(greedy, 2))
	require.False(t, g.Full(greedy, 1))
	require.NotNil(t, begin(modest, 4))
	require.Nil(t, begin(netip.MustParseAddr("10.42.0.9"), 4), "over the bound of all")
	own := begin(netip.Addr{}, 3)
	require.NotNil(t, own, "the machine's own programs have no bound but that of all")
	require.EqualValues(t, 10, g.UnderWay())
	require.EqualValues(t, 3, g.Refused())
	require.Equal(t, "3 queries refused because too many were under way, the last from 10.42.0.9", g.Trouble())
	first.End()
	first.End()
	require.EqualValues(t, 7, g.UnderWay())
	require.NotNil(t, begin(greedy, 3))
}

// TestTurns checks that a source with one piece of work waits for one piece of each other source,
// however many they have.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fair.New(fair.Config{Work: "queries", Running: 1, Total: 1000, PerSource: 1000})
		var holder fair.Work
		require.True(t, g.Begin(&holder, netip.Addr{}, 1))
		holder.Run()
		var order []netip.Addr // guarded by the gate's only turn
		var all sync.WaitGroup
		start := func(from netip.Addr) {
			all.Go(func() {
				var w fair.Work
				if !g.Begin(&w, from, 1) {
					t.Error("refused")
					return
				}
				defer w.End()
				w.Run()
				order = append(order, from)
			})
			synctest.Wait()
		}
		for range 100 {
			start(greedy)
		}
		start(modest)
		holder.Pause()
		all.Wait()
		holder.End()
		require.Len(t, order, 101)
		require.Equal(t, modest, order[1])
		require.Zero(t, g.UnderWay())
	})
}

// TestRunning checks that no more work than the limit computes at once, and that work that pauses
// makes room.
func TestRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fair.New(fair.Config{Work: "queries", Running: 2, Total: 1000, PerSource: 1000})
		var mu sync.Mutex
		running, most := 0, 0
		resume := make(chan struct{})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				var w fair.Work
				if !g.Begin(&w, greedy, 1) {
					t.Error("refused")
					return
				}
				defer w.End()
				for range 2 {
					w.Run()
					w.Run()
					mu.Lock()
					running++
					most = max(most, running)
					mu.Unlock()
					<-resume
					mu.Lock()
					running--
					mu.Unlock()
					w.Pause()
					w.Pause()
				}
			})
		}
		synctest.Wait()
		require.Equal(t, 2, running)
		close(resume)
		all.Wait()
		require.Equal(t, 2, most)
	})
}

func TestSource(t *testing.T) {
	tcp := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: 1} }
	local := tcp("10.42.0.1")
	require.Equal(t, greedy, fair.Source(tcp("10.42.0.7"), local))
	require.Equal(t, greedy, fair.Source(&net.UDPAddr{IP: net.ParseIP("10.42.0.7"), Port: 2}, local))
	require.Equal(t, netip.Addr{}, fair.Source(local, local))
	require.Equal(t, netip.Addr{}, fair.Source(tcp("127.0.0.5"), local))
	require.Equal(t, netip.MustParseAddr("2001:db8:1:2::"), fair.Source(tcp("2001:db8:1:2:3::4"), local))
}

func BenchmarkWork(b *testing.B) {
	g := fair.New(fair.Config{Work: "queries", Running: 1, Total: 1000, PerSource: 1000})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var w fair.Work
			if g.Begin(&w, greedy, 1) {
				w.Run()
				w.End()
			}
		}
	})
}
