package memory

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLimitIsHalfOfTheMachine(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(math.MaxInt64))
	require.EqualValues(t, 2048*mib, Limit(4096*mib))
	require.EqualValues(t, 2048*mib, debug.SetMemoryLimit(-1))
	debug.SetMemoryLimit(math.MaxInt64)
	require.EqualValues(t, least, Limit(512*mib))
	debug.SetMemoryLimit(777 * mib) // as GOMEMLIMIT does
	require.EqualValues(t, 777*mib, Limit(4096*mib))
}

func TestMemoryIsFreedWhenThePeakIsOver(t *testing.T) {
	var have uint64 = 200 * mib
	freed := 0
	k := keeper{size: func() uint64 { return have }, free: func() { freed++; have = 210 * mib }}
	now := time.Now()
	look := func(size uint64) int {
		have, now = size*mib, now.Add(lookInterval)
		before := freed
		k.look(now)
		return freed - before
	}
	k.settle(now)
	require.Zero(t, look(220), "no peak")
	for _, size := range []uint64{400, 800, 1600} {
		require.Zero(t, look(size), "it grows")
	}
	require.Equal(t, 1, look(1600))
	require.Zero(t, look(1600))
	require.Zero(t, look(1600), "just done")
	require.Equal(t, 1, look(1600))
	for range 10 {
		require.Zero(t, look(210))
	}

	k.free = func() { freed++ } // the memory is in use
	require.Zero(t, look(1000))
	require.Equal(t, 1, look(1000))
	for range 10 {
		require.Zero(t, look(1000), "paid for once")
	}
}

// TestGiveBack allocates and drops 512 MiB in this process.
func TestGiveBack(t *testing.T) {
	held := make([]byte, 512*mib)
	for i := 0; i < len(held); i += 4096 {
		held[i] = 1
	}
	before := size()
	runtime.KeepAlive(held)
	k := keeper{size: size, free: debug.FreeOSMemory, settled: before - 512*mib, last: before}
	held = nil
	k.look(time.Now())
	require.Less(t, size(), before-500*mib)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	GiveBack(ctx)
}
