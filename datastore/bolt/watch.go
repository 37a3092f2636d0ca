package bolt

import (
	"context"
	"sync"

	"go.etcd.io/bbolt"
)

// Sink receives one watch's events. Its methods are called by one goroutine at a time. The events
// are shared with other sinks and must not be changed.
type Sink interface {
	// Offer takes the events, or returns false when it would have to wait. It is called by the
	// writer and must not block.
	Offer(events []Event) bool
	// Send takes the events, waiting for room until ctx ends; then it returns false.
	Send(ctx context.Context, events []Event) bool
	// End says that nothing follows. err is nil when the watch's context or the store ended.
	End(err error)
}

// hub knows all watches. The writer pushes each transaction's events to those that keep up:
//
//	add, next published --> following --Offer refused--> behind --all of the log sent--> following
//	add, next older  -----------------------------------> behind
//	following or behind --context, store or history ends--> ended
//
// A watch that is behind has a goroutine that feeds it from the log; one that follows costs nothing.
type hub struct {
	// history reads a page of the log.
	history func(key, end string, from int64) (events []Event, next int64, err error)
	feeders sync.WaitGroup

	// mu guards the rest and the watches' fields. moved is signalled when a watch that is behind
	// advances or ends.
	mu        sync.Mutex
	moved     sync.Cond
	watches   map[*watch]struct{}
	behind    map[*watch]struct{}
	published int64
	closed    bool
}

type watch struct {
	key, end string
	sink     Sink
	ctx      context.Context
	cancel   context.CancelFunc
	// next is the lowest revision that the sink does not have yet.
	next  int64
	ended bool
}

func newHub(history func(string, string, int64) ([]Event, int64, error), published int64) *hub {
	h := &hub{
		history: history, published: published,
		watches: map[*watch]struct{}{}, behind: map[*watch]struct{}{},
	}
	h.moved.L = &h.mu
	return h
}

func (h *hub) add(ctx context.Context, key, end string, from int64, sink Sink) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return ErrClosed
	}
	if from <= 0 {
		from = h.published + 1
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{key: key, end: end, sink: sink, ctx: ctx, cancel: cancel, next: from}
	context.AfterFunc(ctx, func() { h.cancelled(w) })
	h.watches[w] = struct{}{}
	if from <= h.published {
		h.fallBehind(w)
	}
	return nil
}

// fallBehind needs mu.
func (h *hub) fallBehind(w *watch) {
	h.behind[w] = struct{}{}
	h.feeders.Go(func() { h.feed(w) })
}

// cancelled ends a watch that follows; one that is behind is ended by its feeder, which may be
// inside the sink.
func (h *hub) cancelled(w *watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, behind := h.behind[w]; !behind {
		h.end(w, nil)
	}
}

// end needs mu.
func (h *hub) end(w *watch, err error) {
	if w.ended {
		return
	}
	w.ended = true
	w.cancel()
	delete(h.watches, w)
	delete(h.behind, w)
	w.sink.End(err)
	h.moved.Broadcast()
}

// publish pushes the events of a committed transaction, which ended with revision.
func (h *hub) publish(events []Event, revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.published = revision
	for w := range h.watches {
		if _, behind := h.behind[w]; behind {
			continue
		}
		wanted := w.filter(events)
		if len(wanted) == 0 {
			continue
		}
		if w.sink.Offer(wanted) {
			w.next = revision + 1
		} else {
			w.next = wanted[0].KV.Mod
			h.fallBehind(w)
		}
	}
}

func (w *watch) filter(events []Event) []Event {
	var wanted []Event
	for _, e := range events {
		if e.KV.Mod >= w.next && inRange(e.KV.Key, w.key, w.end) {
			wanted = append(wanted, e)
		}
	}
	return wanted
}

// feed sends the log to a watch that is behind until it has caught up with the writer.
func (h *hub) feed(w *watch) {
	from := w.next
	for {
		events, next, err := h.history(w.key, w.end, from)
		stopped := err == nil && len(events) > 0 && !w.sink.Send(w.ctx, events)
		if from = next; h.fed(w, next, err, stopped) {
			return
		}
	}
}

// fed notes how far a feeder came and says whether it is done.
func (h *hub) fed(w *watch, next int64, err error, stopped bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || stopped || w.ctx.Err() != nil {
		h.end(w, err)
		return true
	}
	w.next = next
	caughtUp := next > h.published
	if caughtUp {
		delete(h.behind, w)
	}
	h.moved.Broadcast()
	return caughtUp
}

// wait blocks until no watch lacks events up to revision.
func (h *hub) wait(revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.closed && h.lacking(revision) {
		h.moved.Wait()
	}
}

// lacking needs mu.
func (h *hub) lacking(revision int64) bool {
	for w := range h.behind {
		if w.next <= revision {
			return true
		}
	}
	return false
}

// close ends all watches. The writer must have stopped.
func (h *hub) close() {
	h.mu.Lock()
	h.closed = true
	h.moved.Broadcast()
	for w := range h.watches {
		w.cancel()
		if _, behind := h.behind[w]; !behind {
			h.end(w, nil)
		}
	}
	h.mu.Unlock()
	h.feeders.Wait()
}

// historyPage bounds a feeder's read transaction, in bytes of values.
const historyPage = 1 << 20

// history returns events of a range from revision from on, and the revision to go on with.
func (s *Store) history(key, end string, from int64) ([]Event, int64, error) {
	var events []Event
	next := from
	err := s.view(func(tx *bbolt.Tx) error {
		r := newReader(tx)
		if from <= r.compacted {
			return ErrCompacted
		}
		next = max(from, r.revision+1)
		size := 0
		c := r.log.Cursor()
		for k, v := c.Seek(revisionKey(from)); k != nil; k, v = c.Next() {
			rec, err := decodeRecord(revisionOf(k), v)
			if err != nil {
				return err
			}
			if !inRange(string(rec.key), key, end) {
				continue
			}
			if size >= historyPage {
				next = rec.mod
				return nil
			}
			e, err := r.event(rec)
			if err != nil {
				return err
			}
			events = append(events, e)
			size += len(rec.value)
		}
		return nil
	})
	return events, next, err
}

// event makes the event that the writer published for rec.
func (r *reader) event(rec record) (Event, error) {
	e := Event{Deleted: rec.deleted, KV: rec.kv(rec.deleted)}
	if rec.prev == 0 || rec.version == 1 {
		return e, nil
	}
	prev, err := r.record(rec.prev)
	e.Prev = prev.kv(false)
	return e, err
}
