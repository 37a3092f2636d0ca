package bolt

import (
	"sync/atomic"
	"time"
)

// Stats are figures about the store: its work since it was opened, and its contents.
type Stats struct {
	Revision, Compacted int64
	// Writes counts keys that were written or removed, Refusals requests for which there was no
	// room.
	Writes, Refusals int64
	// Frames counts transactions that went to the log; Syncing is their total time.
	Frames  int64
	Syncing time.Duration
	// Checkpoints counts layers that went to the file; Checkpointing is their total time.
	Checkpoints   int64
	Checkpointing time.Duration
	// MemoryBytes is roughly the size of the layers, LogBytes the size of the log's two files, and
	// FileBytes that of the bbolt file, free pages included.
	MemoryBytes, LogBytes, FileBytes int64
	// UsedBytes is the size of the file and memory without free pages; QuotaBytes is its limit.
	UsedBytes, QuotaBytes int64
	// Watches are open. Of these, Behind read from the log, because their client is slow or they
	// began in the past.
	Watches, Behind int64
	// Leases have been granted and have not ended.
	Leases int64
}

// counters are the part of Stats that is counted.
type counters struct {
	writes, refusals, frames, syncing, checkpoints, checkpointing, logBytes atomic.Int64
}

// addSince adds the time since start to a counter of nanoseconds.
func addSince(counter *atomic.Int64, start time.Time) { counter.Add(int64(time.Since(start))) }

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
