// Package memory limits the process's memory by the machine's, and returns memory to the kernel
// after a peak.
//
// Limit sets Go's soft limit once, at the start. GiveBack is a loop that one goroutine runs for the
// life of the process. Both act on the whole process, so call each of them once.
package memory

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const mib = 1 << 20

// least is the smallest limit: mote needs some 300 MiB when idle, and with a lower limit the
// garbage collector would run without pause.
const least = 400 * mib

// Limit sets Go's soft memory limit to half of the machine's usable memory, and at least 400 MiB:
// the other half is for pods, shims and the page cache. Near the limit the garbage collector runs
// more often, so that garbage does not add to the memory in use. The variable GOMEMLIMIT, which Go
// has read already, overrides it.
func Limit(usable uint64) int64 {
	if set := debug.SetMemoryLimit(-1); set != math.MaxInt64 {
		return set
	}
	limit := max(int64(usable/2), least)
	debug.SetMemoryLimit(limit)
	return limit
}

const (
	// lookInterval is the interval between checks of the process's size, which stop nothing.
	lookInterval = 20 * time.Second
	// peakGrowth defines a peak: the size exceeds that after the last collection by this much and
	// by a quarter.
	peakGrowth = 64 * mib
	// restInterval is the minimum time between two collections by keeper: each takes some 100 ms of
	// processor time.
	restInterval = time.Minute
)

// GiveBack returns memory to the kernel when a peak is over, until ctx ends. Go itself keeps such
// memory for minutes, as it may need it again.
func GiveBack(ctx context.Context) {
	k := keeper{size: size, free: debug.FreeOSMemory}
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	k.settle(time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			k.look(now)
		}
	}
}

// keeper decides when a peak is over.
type keeper struct {
	size func() uint64
	free func()

	settled, last uint64 // sizes: after keeper's last collection, at the last check
	at            time.Time
}

func (k *keeper) settle(now time.Time) {
	k.settled = k.size()
	k.last, k.at = k.settled, now
}

// look frees memory if the process is larger than when it settled and no longer grows. The size
// after that is the new baseline, so that lasting growth costs one collection only.
func (k *keeper) look(now time.Time) {
	have := k.size()
	grows := have > k.last+k.last/20
	k.last = have
	k.settled = min(k.settled, have)
	if grows || have < k.settled+max(peakGrowth, k.settled/4) || now.Sub(k.at) < restInterval {
		return
	}
	k.free()
	k.settle(now)
}

// size returns how much of the machine's memory Go holds.
func size() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}
