package bolt

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// hub holds all watches. The writer pushes the events of each transaction to those that keep up:
//
//	new, from published on --> following --no room in the queue--> behind
//	behind --all of the log queued--> following
//	new, from before       --> behind
//	following or behind --cancelled, watcher or store closed, history gone--> ended
//
// A watch that is behind has a goroutine that feeds it from the log; one that follows costs
// nothing.
type hub struct {
	// history reads a page of the log.
	history func(r Range, from int64) (events []Event, next int64, err error)
	// progress is Options.ProgressInterval.
	progress time.Duration
	feeders  sync.WaitGroup

	// mu guards the rest, and the fields of watches and watchers. changed is signalled when a queue
	// has room again, and when a watch ends.
	mu        sync.Mutex
	changed   sync.Cond
	watches   map[*watch]struct{}
	published int64
	closed    bool
	// timer sends the progress. A write arms it, or a watch that begins in the past, and it fires
	// once: an idle store has no timer.
	timer *time.Timer
}

func newHub(s *Store) *hub {
	h := &hub{history: s.history, progress: s.options.ProgressInterval, published: s.revision.Load(), watches: map[*watch]struct{}{}}
	h.changed.L = &h.mu
	return h
}

// publish pushes the events of a committed transaction, which ended with revision.
func (h *hub) publish(events []Event, revision int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.published = revision
	for w := range h.watches {
		if w.behind {
			continue
		}
		wanted := w.filter(events)
		if len(wanted) == 0 {
			continue
		}
		if w.watcher.offerLocked(w.id, wanted) {
			w.next, w.promised = revision+1, wanted[len(wanted)-1].KV.Mod
		} else {
			w.next = wanted[0].KV.Mod
			h.fallBehindLocked(w)
		}
	}
	if len(h.watches) > 0 {
		h.armLocked()
	}
}

// armLocked makes sure that progress will be sent.
func (h *hub) armLocked() {
	if h.timer == nil && !h.closed {
		h.timer = time.AfterFunc(h.progress, h.sendProgress)
	}
}

// sendProgress sends the current revision to the watches that want progress and have not got it.
func (h *hub) sendProgress() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = nil
	for w := range h.watches {
		if w.Progress && !w.behind && w.promised < h.published {
			w.promised = h.published
			w.watcher.pushLocked(Message{Watch: w.id, Revision: h.published})
		}
	}
}

// fallBehindLocked lets a goroutine feed a watch from the log.
func (h *hub) fallBehindLocked(w *watch) {
	w.behind = true
	h.feeders.Go(func() { h.feed(w) })
}

// endLocked ends a watch. err is nil if it was cancelled.
func (h *hub) endLocked(w *watch, err error) {
	if w.ended {
		return
	}
	w.ended = true
	delete(h.watches, w)
	delete(w.watcher.watches, w.id)
	w.watcher.pushLocked(Message{Watch: w.id, Revision: h.published, Ended: true, Err: err})
	w.watcher.answerProgress()
	h.changed.Broadcast()
}

// feed sends the log to a watch that is behind until it has caught up with the writer.
func (h *hub) feed(w *watch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w.behind && !w.ended && !h.closed {
		from := w.next
		h.mu.Unlock()
		events, next, err := h.history(w.Range, from)
		h.mu.Lock()
		switch {
		case w.ended:
		case err != nil:
			h.endLocked(w, err)
		case h.queueLocked(w, events):
			w.next = next
			if next > h.published {
				w.behind = false
				w.watcher.answerProgress()
			}
		}
	}
}

// queueLocked waits for room and queues events of a watch. It returns false if the watch has ended.
func (h *hub) queueLocked(w *watch, events []Event) bool {
	if len(events) == 0 {
		return true
	}
	last := events[len(events)-1].KV.Mod
	for !w.ended && !h.closed {
		if w.watcher.offerLocked(w.id, events) {
			w.promised = max(w.promised, last)
			return true
		}
		h.changed.Wait()
	}
	return false
}

// close ends all watches. The writer must have stopped.
func (h *hub) close() {
	h.mu.Lock()
	h.closed = true
	if h.timer != nil {
		h.timer.Stop()
	}
	h.changed.Broadcast()
	for w := range h.watches {
		w.ended = true
		w.watcher.wake()
	}
	h.mu.Unlock()
	h.feeders.Wait()
}

// historyPage bounds the read transaction of a feeder, in bytes of values.
const historyPage = queueBytes / 4

// history returns the events of r from revision from on, and the revision to go on with.
func (s *Store) history(r Range, from int64) ([]Event, int64, error) {
	var events []Event
	next := from
	err := s.view(func(v *view) error {
		if known, err := v.hasHistory(from); !known || err != nil {
			return cmp.Or(err, ErrCompacted)
		}
		next = max(from, v.revision+1)
		size := 0
		return v.walk(from, func(rec *format.Record) (bool, error) {
			if !inRange(string(rec.Key), r.Key, r.End) {
				return true, nil
			}
			if size >= historyPage {
				next = rec.Mod
				return false, nil
			}
			e, err := v.event(rec, r.PrevKV)
			events = append(events, e)
			size += e.size()
			return true, err
		})
	})
	return events, next, err
}

// hasHistory reports whether the history from revision on exists. The record of the compacted
// revision itself is kept, as in etcd, even if it is a deletion. No such record exists if that
// revision was skipped, as after a crash.
func (v *view) hasHistory(revision int64) (bool, error) {
	if revision != v.compacted || revision <= format.FirstRevision {
		return revision >= v.compacted, nil
	}
	rec, err := v.find(revision)
	return rec != nil, err
}

// walk calls fn with the records of the log from revision from on, until it returns false. Above
// the compacted history, each revision has a record.
func (v *view) walk(from int64, fn func(*format.Record) (bool, error)) error {
	from = max(from, format.FirstRevision+1) // a new store is at a revision without a write
	c := v.log.Cursor()
	for k, b := c.Seek(format.RevisionKey(from)); k != nil; k, b = c.Next() {
		rec, err := format.DecodeRecord(k, b)
		if err == nil && rec.Mod != from {
			err = fmt.Errorf("%w: the record of revision %d is missing", format.ErrDamaged, from)
		}
		if err != nil {
			return err
		}
		if more, err := fn(&rec); err != nil || !more {
			return err
		}
		from++
	}
	if last := format.LastRevision(v.meta); from <= last {
		return fmt.Errorf("%w: the records of revisions %d to %d are missing", format.ErrDamaged, from, last)
	}
	for i := len(v.layers) - 1; i >= 0; i-- {
		for _, rec := range v.layers[i].recordsFrom(from) {
			if rec.Mod > v.revision {
				return nil
			}
			if more, err := fn(rec); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// event returns the event that the writer published for rec.
func (v *view) event(rec *format.Record, prevKV bool) (Event, error) {
	e := Event{Deleted: rec.Deleted, KV: kvOf(rec)}
	if !prevKV || rec.Prev == 0 || rec.Version == 1 || rec.Mod <= v.compacted { // the version before is compacted
		return e, nil
	}
	prev, err := v.record(rec.Prev)
	if err != nil {
		return e, err
	}
	e.Prev = kvOf(prev)
	return e, nil
}
