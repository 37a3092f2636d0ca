package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watcher reads one watch.
type watcher struct {
	*store
	responses clientv3.WatchChan
	pending   []*clientv3.Event
	// seen is the highest revision of any event or progress response.
	seen int64
}

// watch begins a watch with previous values and progress, and waits until the store has created it.
func (s *store) watch(key string, opts ...clientv3.OpOption) *watcher {
	s.Helper()
	opts = append(opts, clientv3.WithPrevKV(), clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	w := &watcher{store: s, responses: s.client.Watch(s.ctx, key, opts...)}
	created := w.receive()
	require.True(s, created.Created)
	return w
}

func (w *watcher) receive() clientv3.WatchResponse {
	w.Helper()
	select {
	case resp, ok := <-w.responses:
		require.True(w, ok, "the watch ended")
		require.NoError(w, resp.Err())
		require.GreaterOrEqual(w, resp.Header.Revision, w.seen, "revisions of a watch must not go back")
		w.seen = resp.Header.Revision
		return resp
	case <-w.ctx.Done():
		require.FailNow(w, "no event within the test's time")
		return clientv3.WatchResponse{}
	}
}

// take waits for n events: "put KEY=VALUE was PREVIOUS", "delete KEY was PREVIOUS".
func (w *watcher) take(n int) []string {
	w.Helper()
	for len(w.pending) < n {
		w.pending = append(w.pending, w.receive().Events...)
	}
	out := make([]string, n)
	for i, e := range w.pending[:n] {
		out[i] = describe(e)
	}
	w.pending = w.pending[n:]
	return out
}

func describe(e *clientv3.Event) string {
	var b strings.Builder
	if e.Type == clientv3.EventTypeDelete {
		fmt.Fprintf(&b, "delete %s", e.Kv.Key)
	} else {
		fmt.Fprintf(&b, "put %s=%s", e.Kv.Key, e.Kv.Value)
	}
	if e.PrevKv != nil {
		fmt.Fprintf(&b, " was %s", e.PrevKv.Value)
	}
	return b.String()
}

func testWatch(t *testing.T, s *store) {
	a := s.create("/k/a", "1")
	w := s.watch("/k/", clientv3.WithPrefix(), clientv3.WithRev(a+1))
	s.create("/j", "below")
	s.create("/l", "above")
	b := s.create("/k/b", "1")
	a2 := s.update("/k/a", "2", a)
	s.delete("/k/b", b)
	s.create("/k/b", "2")
	s.delete("/k/a", a2)
	require.Equal(t, []string{
		"put /k/b=1", "put /k/a=2 was 1", "delete /k/b was 1", "put /k/b=2", "delete /k/a was 2",
	}, w.take(5))
}

func testWatchOneKey(t *testing.T, s *store) {
	w := s.watch("/k")
	a := s.create("/k", "1")
	s.create("/k/a", "1")
	s.create("/k0", "1")
	s.update("/k", "2", a)
	require.Equal(t, []string{"put /k=1", "put /k=2 was 1"}, w.take(2))
}

func testWatchHistory(t *testing.T, s *store) {
	a := s.create("/k/a", "1")
	a2 := s.update("/k/a", "2", a)
	del := s.delete("/k/a", a2)
	all := []string{"put /k/a=1", "put /k/a=2 was 1", "delete /k/a was 2", "put /k/a=live"}
	watchers := map[int64]*watcher{}
	for _, from := range []int64{a, a2, del} {
		watchers[from] = s.watch("/k/", clientv3.WithPrefix(), clientv3.WithRev(from))
	}
	s.create("/k/a", "live")
	for from, w := range watchers {
		want := all[from-a:]
		require.Equal(t, want, w.take(len(want)), "from %d", from)
	}
}

func testWatchFuture(t *testing.T, s *store) {
	a := s.create("/k/a", "1")
	w := s.watch("/k/", clientv3.WithPrefix(), clientv3.WithRev(a+3))
	for i := range 5 {
		s.create(fmt.Sprintf("/k/%d", i), "1")
	}
	require.Equal(t, []string{"put /k/2=1", "put /k/3=1", "put /k/4=1"}, w.take(3))
}

// testWatchProgress checks that all events up to the revision of a progress response come before
// it. The apiserver relies on this when it answers consistent reads from its cache.
func testWatchProgress(t *testing.T, s *store) {
	w := s.watch("/k/", clientv3.WithPrefix())
	for i := range 8 {
		s.create(fmt.Sprintf("/other/%d", i), "1")
		last := s.create(fmt.Sprintf("/k/%d", i), "1")
		require.NoError(t, s.client.RequestProgress(s.ctx))
		events := 0
		for progress := false; !progress; {
			resp := w.receive()
			events += len(resp.Events)
			progress = resp.IsProgressNotify() && resp.Header.Revision >= last
		}
		require.Equal(t, 1, events, "progress came before the event that it promised")
	}
}

// testWatchLongHistory reads more history than fits into buffers while writers continue.
func testWatchLongHistory(t *testing.T, s *store) {
	const writes = 400
	value := strings.Repeat("x", 20_000)
	revision := s.create("/k/a", value)
	first := revision
	for range writes / 2 {
		revision = s.update("/k/a", value, revision)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	responses := s.client.Watch(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithRev(first))
	for range writes / 2 {
		revision = s.update("/k/a", value, revision)
	}
	next := first
	for next <= revision {
		select {
		case resp := <-responses:
			require.NoError(t, resp.Err())
			for _, e := range resp.Events {
				require.Equal(t, next, e.Kv.ModRevision)
				next++
			}
		case <-s.ctx.Done():
			require.FailNow(t, "events are missing", "from revision %d", next)
		}
	}
}

// testWatchBigEvents checks events that, with their previous values, are larger together than any
// message should be.
func testWatchBigEvents(t *testing.T, s *store) {
	value := strings.Repeat("x", 1<<20)
	first := s.create("/k/a", value)
	last := first
	for range 4 {
		last = s.update("/k/a", value, last)
	}
	for _, revision := range []int64{first, last + 1} {
		w := s.watch("/k/", clientv3.WithPrefix(), clientv3.WithRev(revision))
		if revision > last {
			s.delete("/k/a", last)
			require.Equal(t, []string{"delete /k/a was " + value}, w.take(1))
		} else {
			require.Len(t, w.take(5), 5)
		}
	}
}

// testWatchesOfStream checks that watches of one client share a stream, and that each receives only
// its own keys.
func testWatchesOfStream(t *testing.T, s *store) {
	ctx, cancel := context.WithCancel(s.ctx)
	cancelled := s.client.Watch(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	require.True(t, (<-cancelled).Created)
	var watchers []*watcher
	for i := range 5 {
		watchers = append(watchers, s.watch(fmt.Sprintf("/k/%d", i)))
	}
	cancel()
	for resp := range cancelled {
		require.NoError(t, resp.Err())
	}
	for i := range 5 {
		s.create(fmt.Sprintf("/k/%d", i), "1")
	}
	for i, w := range watchers {
		require.Equal(t, []string{fmt.Sprintf("put /k/%d=1", i)}, w.take(1))
	}
}
