package bolt

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/stretchr/testify/require"
)

// TestBurstEnds checks that the data of a burst goes from memory into the file once the burst is
// over, and not before. Writes that trickle in do not go there, however many they become.
func TestBurstEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s, err := Open(path, Options{})
		require.NoError(t, err)
		checkpoints := func() int64 {
			synctest.Wait()
			stats, err := s.Stats()
			require.NoError(t, err)
			return stats.Checkpoints
		}
		before := checkpoints()
		value := make([]byte, 20_000)
		for i := range 2 * burstBytes / len(value) {
			_, err := s.create(ctx, fmt.Sprint(i), value)
			require.NoError(t, err)
			time.Sleep(pause / 2)
		}
		require.Equal(t, before, checkpoints(), "in the middle of a burst")
		time.Sleep(2 * pause)
		require.Equal(t, before+1, checkpoints())
		require.Zero(t, s.newest().size())
		require.Len(t, s.layers, 1)

		for i := range 4 * burstBytes / len(value) {
			_, err := s.create(ctx, fmt.Sprint("slow", i), value)
			require.NoError(t, err)
			time.Sleep(2 * pause)
		}
		time.Sleep(24 * time.Hour)
		require.Equal(t, before+1, checkpoints())
		require.False(t, s.burst.armed)
		require.NoError(t, s.Close())
	})
}

// TestCheckpointLetsGo checks that the data of a checkpoint does not stay in memory.
func TestCheckpointLetsGo(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	_, err := s.create(t.Context(), "key", []byte("value"))
	require.NoError(t, err)
	layer := weak.Make(s.newest())
	require.NoError(t, s.Checkpoint(t.Context()))
	require.Eventually(t, func() bool { runtime.GC(); return layer.Value() == nil }, 10*time.Second, 10*time.Millisecond)
}
