package bolt

import (
	"runtime/debug"
	"time"
)

// What a burst of writes leaves in memory goes into the file once the burst is over, and what it leaves as garbage back to
// the system. An idle store has no timer: the frames of a burst arm one, and it fires until there has been a pause.
//
// Writes that trickle in are no burst, however many they become: of a lease that is renewed every two seconds, most
// versions are compacted before the layer is full, and are never written to the file.
const (
	// A burst is so many bytes of frames in so short a time.
	burstBytes = 128 << 10
	burstTime  = 10 * time.Second
	// pause is how long no frame is written when a burst is over.
	pause = time.Second
	// worthCollecting is how many bytes of frames leave so much garbage that a collection, which looks at all of the
	// process's heap, is cheap beside what the writes have cost.
	worthCollecting = 4 << 20
)

// burst is what the writer knows of the frames since the last pause.
type burst struct {
	// timer has fired, or is stopped, unless armed.
	timer *time.Timer
	armed bool
	// bytes were logged since began, the last of them at last. due says that they are a burst.
	began, last time.Time
	bytes       int64
	due         bool
}

func newBurst() burst {
	b := burst{timer: time.NewTimer(pause)}
	b.timer.Stop()
	return b
}

// note is told of a frame of so many bytes.
func (b *burst) note(now time.Time, bytes int) {
	if !b.due && now.Sub(b.began) > burstTime {
		b.began, b.bytes = now, 0
	}
	b.last = now
	b.bytes += int64(bytes)
	if b.due = b.due || b.bytes >= burstBytes; b.due {
		b.arm(pause)
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
	if s.failureNow() != nil {
		return
	}
	if s.pending != nil && !s.pending.isDone() {
		s.burst.arm(pause)
		return
	}
	// An error is the disk's, which is full or broken: the next write is told, and what is here stays.
	if s.awaitCheckpoint() == nil && s.freeze(s.burst.bytes >= worthCollecting) == nil {
		s.burst.bytes, s.burst.due = 0, false
	}
}

// collect gives the system back what a burst has left. Go itself would wait up to two minutes, and then take minutes.
func collect() { debug.FreeOSMemory() }
