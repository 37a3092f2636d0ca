package bolt

import (
	"sync/atomic"
	"time"
)

// Stats is what the store has done since it was opened, and what it holds.
type Stats struct {
	Revision, Compacted int64
	// Writes is how many keys were written or removed, Refusals how many requests had no room on the disk.
	Writes, Refusals int64
	// Frames is how many transactions went to the log, and Syncing how long that took together.
	Frames  int64
	Syncing time.Duration
	// Checkpoints is how many layers went to the file, and Checkpointing how long that took together.
	Checkpoints   int64
	Checkpointing time.Duration
	// MemoryBytes is about what the layers occupy, LogBytes the size of the log's two files, and FileBytes
	// that of the bbolt file, free pages included.
	MemoryBytes, LogBytes, FileBytes int64
	// QuotaBytes is what UsedBytes, the part of the file and of memory that holds something, may be.
	UsedBytes, QuotaBytes int64
	// Watches are open; of these, Behind read from the log because their client is slow or began in the past.
	Watches, Behind int64
	// Leases have been granted and have not ended.
	Leases int64
}

// counters are the running part of Stats.
type counters struct {
	writes, refusals, frames, syncing, checkpoints, checkpointing, logBytes atomic.Int64
}

// since adds the time since start to a counter of nanoseconds.
func since(counter *atomic.Int64, start time.Time) { counter.Add(int64(time.Since(start))) }

// Stats returns the store's figures.
func (s *Store) Stats() (Stats, error) {
	out := Stats{
		Writes: s.counters.writes.Load(), Refusals: s.counters.refusals.Load(),
		Frames: s.counters.frames.Load(), Syncing: time.Duration(s.counters.syncing.Load()),
		Checkpoints: s.counters.checkpoints.Load(), Checkpointing: time.Duration(s.counters.checkpointing.Load()),
		LogBytes: s.counters.logBytes.Load(), UsedBytes: s.used(), QuotaBytes: s.options.QuotaBytes,
	}
	out.Watches, out.Behind = s.hub.count()
	s.leases.mu.Lock()
	out.Leases = int64(len(s.leases.byID))
	s.leases.mu.Unlock()
	err := s.view(func(v *view) error {
		out.Revision, out.Compacted, out.FileBytes = v.revision, v.compacted, v.tx.Size()
		for _, l := range v.layers {
			out.MemoryBytes += int64(l.size())
		}
		return nil
	})
	return out, err
}

func (h *hub) count() (watches, behind int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watches {
		if w.behind {
			behind++
		}
	}
	return int64(len(h.watches)), behind
}
