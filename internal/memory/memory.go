// Package memory bounds the process' memory by the machine's, and gives memory back after a peak.
//
// Limit sets Go's soft limit once, at the start. GiveBack is a loop that one goroutine runs for the life of the
// process. Both act on the whole process, so there is one of each.
package memory

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const mib = 1 << 20

// least is the smallest limit: mote needs some 300 MiB at idle, and a limit below that makes the collector work
// without end.
const least = 400 * mib

// Limit sets Go's soft memory limit to half of what the machine offers, and at least 400 MiB: the other half is for
// pods, shims and the page cache. Near the limit the garbage collector works more often, so that garbage does not add
// to what is used. The variable GOMEMLIMIT, which Go has read already, wins.
func Limit(usable uint64) int64 {
	if set := debug.SetMemoryLimit(-1); set != math.MaxInt64 {
		return set
	}
	limit := max(int64(usable/2), least)
	debug.SetMemoryLimit(limit)
	return limit
}

const (
	// lookInterval is how often the size of the process is looked at, without stopping anything.
	lookInterval = 20 * time.Second
	// peakGrowth is what a peak is: this much more than after the last collection, and a quarter.
	peakGrowth = 64 * mib
	// restInterval is the least time between two collections of ours: each takes some 100 ms of processor time.
	restInterval = time.Minute
)

// GiveBack returns memory to the kernel when a peak is over, until ctx ends. Go by itself keeps what it once had for
// minutes, as it may need it again.
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

	settled, last uint64 // sizes: after the last collection of ours, at the last look
	at            time.Time
}

func (k *keeper) settle(now time.Time) {
	k.settled = k.size()
	k.last, k.at = k.settled, now
}

// look frees memory if the process is larger than when it settled and does not grow any more. What is in use after
// that is the new measure, so that growth that stays is paid for once.
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

// size is what Go holds of the machine's memory.
func size() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() - samples[1].Value.Uint64()
}
