package bolt

import (
	"runtime/debug"
	"time"
)

// What a burst of writes leaves in memory goes into the file once the burst is over, and what it leaves as garbage back to
// the system. An idle store has no timer: a frame of the log arms one if there is enough to write, and it fires until
// there has been a pause.
const (
	// pause is how long no frame is written when a burst is over.
	pause = time.Second
	// worthPages is how much of the log is worth a checkpoint that nothing else asks for: one writes a dozen pages for the
	// first of its records. An idle node logs this much in four hours.
	worthPages = 128 << 10
	// worthCollecting is how many bytes of frames leave so much garbage that a collection, which looks at all of the
	// process's heap, is cheap beside what the writes have cost.
	worthCollecting = 4 << 20
)

// burst is what the writer knows of the frames since the last pause.
type burst struct {
	// timer has fired, or is stopped, unless armed.
	timer *time.Timer
	armed bool
	// last is when the last frame was written, and bytes how much was since memory was given back.
	last  time.Time
	bytes int64
}

func newBurst() burst {
	b := burst{timer: time.NewTimer(pause)}
	b.timer.Stop()
	return b
}

// noteFrame is told of a frame of so many bytes.
func (s *Store) noteFrame(now time.Time, bytes int) {
	s.burst.last = now
	s.burst.bytes += int64(bytes)
	if s.wal.Used() >= worthPages {
		s.burst.arm(pause)
	}
}

func (b *burst) arm(d time.Duration) {
	if !b.armed {
		b.armed = true
		b.timer.Reset(d)
	}
}

// rest is the writer's when the timer has fired.
func (s *Store) rest() {
	s.burst.armed = false
	if since := time.Since(s.burst.last); since < pause {
		s.burst.arm(pause - since)
		return
	}
	if s.wal.Used() < worthPages || s.failureNow() != nil {
		return
	}
	if s.pending != nil && !s.pending.isDone() {
		s.burst.arm(pause)
		return
	}
	// An error is the disk's, which is full or broken: the next write is told, and what is here stays.
	if s.awaitCheckpoint() == nil && s.freeze(s.burst.bytes >= worthCollecting) == nil {
		s.burst.bytes = 0
	}
}

// collect gives the system back what a burst has left. Go itself would wait up to two minutes, and then take minutes.
func collect() { debug.FreeOSMemory() }
