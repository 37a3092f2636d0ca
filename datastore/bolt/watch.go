package bolt

import "context"

// queueBytes limits the bytes that wait for the client of a watcher. Events that do not fit are
// read from the log once there is room again: a client that does not read costs no more than this.
const queueBytes = 1 << 20

// eventOverhead is roughly how many bytes an event takes beside its key and values.
const eventOverhead = 200

// AllWatches, as the watch of a progress message, means every watch of the watcher.
const AllWatches int64 = -1

// Range selects the events of a watch.
type Range struct {
	// Key and End are as in Query.
	Key, End string
	// From is the first revision that is wanted; 0 begins with the next write.
	From int64
	// PrevKV asks for the Prev of events.
	PrevKV bool
	// Progress asks for the current revision from time to time while nothing happens in the range:
	// see Options.ProgressInterval.
	Progress bool
}

// Message is one message of a Watcher.
type Message struct {
	// Watch is the number that the watch was given, or AllWatches.
	Watch int64
	// Revision is the store's revision when the message was queued. A message with none of the
	// fields below is progress: no event up to Revision will follow.
	Revision int64
	// Events are in order, and shared with others: they must not be changed.
	Events []Event
	// Created marks the first message of a watch.
	Created bool
	// Ended marks the last message of a watch. Err is the reason, nil if the watch was cancelled:
	// ErrCompacted, or the error of a broken store.
	Ended bool
	Err   error
}

// Watcher is the watches of one client. Their messages wait in one queue, which Next reads. One
// goroutine may call Next while others call the other methods.
type Watcher struct {
	hub *hub
	// ready has a token when the queue may have something.
	ready chan struct{}

	// The hub's mu guards the fields below. asked means that progress was requested and not sent
	// yet.
	watches           map[int64]*watch
	queue             []Message
	bytes             int
	progressRequested bool
	closed            bool
}

// NewWatcher returns a Watcher without watches. The caller must close it.
func (s *Store) NewWatcher() *Watcher {
	return &Watcher{hub: s.hub, ready: make(chan struct{}, 1), watches: map[int64]*watch{}}
}

// Watch begins a watch under a number. It returns false if another watch of w has the number. The
// first message is Created; if the history is gone, the second is Ended with ErrCompacted.
func (w *Watcher) Watch(id int64, r Range) bool {
	h := w.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, taken := w.watches[id]; taken {
		return false
	}
	w.pushLocked(Message{Watch: id, Revision: h.published, Created: true})
	if r.From <= 0 {
		r.From = h.published + 1
	}
	added := &watch{Range: r, id: id, watcher: w, next: r.From, promised: r.From - 1}
	w.watches[id] = added
	h.watches[added] = struct{}{}
	if added.next <= h.published {
		h.fallBehindLocked(added)
		h.armLocked()
	}
	return true
}

// Cancel ends a watch. It returns false if there is none of this number.
func (w *Watcher) Cancel(id int64) bool {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	watch := w.watches[id]
	if watch != nil {
		w.hub.endLocked(watch, nil)
	}
	return watch != nil
}

// RequestProgress requests one message with the revision that all watches of w have reached. It is
// sent as soon as none of them is behind.
func (w *Watcher) RequestProgress() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.progressRequested = true
	w.answerProgress()
}

// answerProgress answers RequestProgress if it can. The hub's mu must be held.
func (w *Watcher) answerProgress() {
	if !w.progressRequested {
		return
	}
	for _, one := range w.watches {
		if one.behind {
			return
		}
	}
	w.progressRequested = false
	for _, one := range w.watches {
		one.promised = w.hub.published
	}
	w.pushLocked(Message{Watch: AllWatches, Revision: w.hub.published})
}

// Post queues a message of the caller, in order with the others.
func (w *Watcher) Post(m Message) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	m.Revision = w.hub.published
	w.pushLocked(m)
}

// Next waits for messages and returns all that wait. It fails with ctx, and with ErrClosed once the
// watcher or the store is closed.
func (w *Watcher) Next(ctx context.Context) ([]Message, error) {
	for {
		if messages, err := w.take(); len(messages) > 0 || err != nil {
			return messages, err
		}
		select {
		case <-w.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (w *Watcher) take() ([]Message, error) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if w.closed || w.hub.closed {
		return nil, ErrClosed
	}
	messages := w.queue
	w.queue, w.bytes = nil, 0
	if len(messages) > 0 {
		w.hub.changed.Broadcast()
	}
	return messages, nil
}

// Close ends all watches of w.
func (w *Watcher) Close() {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.closed = true
	for _, one := range w.watches {
		w.hub.endLocked(one, nil)
	}
	w.queue = nil
	w.wake()
}

// pushLocked queues a message, however much waits already.
func (w *Watcher) pushLocked(m Message) {
	if !w.closed {
		w.queue = append(w.queue, m)
		w.wake()
	}
}

func (w *Watcher) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// offerLocked queues events of a watch if there is room. It keeps the slice.
func (w *Watcher) offerLocked(id int64, events []Event) bool {
	revision := w.hub.published
	size := 0
	for _, e := range events {
		size += e.size()
	}
	if w.bytes > 0 && w.bytes+size > queueBytes {
		return false
	}
	w.bytes += size
	if last := len(w.queue) - 1; last >= 0 && w.queue[last].Watch == id && len(w.queue[last].Events) > 0 {
		m := &w.queue[last]
		m.Events, m.Revision = append(m.Events, events...), revision
		return true
	}
	w.pushLocked(Message{Watch: id, Revision: revision, Events: events})
	return true
}

func (e Event) size() int {
	size := eventOverhead + len(e.KV.Key) + len(e.KV.Value)
	if e.Prev != nil {
		size += len(e.Prev.Value)
	}
	return size
}

// watch is one watch. The hub's mu guards it.
type watch struct {
	Range
	id      int64
	watcher *Watcher
	// next is the lowest revision that is not in the queue yet.
	next int64
	// promised is the highest revision that a message has reported.
	promised int64
	behind   bool
	ended    bool
}

func (w *watch) filter(events []Event) []Event {
	var wanted []Event
	for _, e := range events {
		if e.KV.Mod >= w.next && inRange(e.KV.Key, w.Key, w.End) {
			if !w.PrevKV {
				e.Prev = nil
			}
			wanted = append(wanted, e)
		}
	}
	return wanted
}
