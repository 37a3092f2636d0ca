package bolt

import (
	"runtime/debug"
	"time"
)

// Once a burst of writes is over, the store writes its data from memory to the file, and returns
// its garbage to the system. An idle store has no timer: the frames of a burst arm one, and it
// fires until there has been a pause.
//
// Writes that trickle in are no burst, however many they become: of a lease that is renewed every
// two seconds, most versions are compacted before the layer is full, and are never written to the
// file.
const (
	// A burst is at least burstBytes of frames within burstTime.
	burstBytes = 128 << 10
	burstTime  = 10 * time.Second
	// pause is the time without a frame after which a burst is over.
	pause = time.Second
	// worthCollecting is the number of bytes of frames that leave enough garbage for a collection.
	// A collection goes through the process's whole heap, and is then cheap compared to the writes.
	worthCollecting = 4 << 20
)

// burst is the writer's view of the frames since the last pause.
type burst struct {
	// timer has fired or is stopped, unless armed.
	timer *time.Timer
	armed bool
	// bytes were logged since start, the last of them at last. active means that they are a burst.
	start, last time.Time
	bytes       int64
	active      bool
}

func newBurst() burst {
	b := burst{timer: time.NewTimer(pause)}
	b.timer.Stop()
	return b
}

// add counts a frame of so many bytes.
func (b *burst) add(now time.Time, bytes int) {
	if !b.active && now.Sub(b.start) > burstTime {
		b.start, b.bytes = now, 0
	}
	b.last = now
	b.bytes += int64(bytes)
	if b.active = b.active || b.bytes >= burstBytes; b.active {
		b.arm(pause)
	}
}

func (b *burst) arm(d time.Duration) {
	if !b.armed {
		b.armed = true
		b.timer.Reset(d)
	}
}

// endBurst writes the data of a burst to the file, if the burst is over. The writer calls it when
// the timer has fired.
func (s *Store) endBurst() {
	s.burst.armed = false
	if since := time.Since(s.burst.last); since < pause {
		s.burst.arm(pause - since)
		return
	}
	if s.currentFailure() != nil {
		return
	}
	if s.pending != nil && !s.pending.isDone() {
		s.burst.arm(pause)
		return
	}
	// An error means that the disk is full or broken: the next write gets it, and the data stays in
	// memory.
	if s.awaitCheckpoint() == nil && s.freeze(s.burst.bytes >= worthCollecting) == nil {
		s.burst.bytes, s.burst.active = 0, false
	}
}

// freeMemory gives the garbage of a burst back to the system. Go itself would wait up to two
// minutes, and then take minutes.
func freeMemory() { debug.FreeOSMemory() }
