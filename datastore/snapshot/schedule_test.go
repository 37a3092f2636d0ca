package snapshot

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"
)

// scheduled runs a Schedule in a synctest bubble, in which time passes at once. The clock begins in
// the year 2000.
func scheduled(t *testing.T, m machine, timetable string, fn func(saved func() int)) {
	t.Helper()
	store := m.open(t)
	put(t, store, "/a", "1")
	stream, err := fromStore(store)(t.Context())
	require.NoError(t, err)
	require.NoError(t, store.Close())
	contents := stream.Reader.(*bytes.Buffer).Bytes()
	table, err := cron.ParseStandard(timetable)
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		var count atomic.Int64
		source := func(context.Context) (*Stream, error) {
			count.Add(1)
			return &Stream{Revision: stream.Revision, Size: stream.Size, Reader: bytes.NewReader(contents)}, nil
		}
		s := &Schedule{Folder: m.folder, Source: source, Origin: m.origin(), Timetable: table, Keep: 2}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		fn(func() int { synctest.Wait(); return int(count.Load()) })
		cancel()
		require.NoError(t, <-done)
	})
}

func TestScheduleOfAFreshMachine(t *testing.T) {
	m := newMachine(t)
	scheduled(t, m, "0 */12 * * *", func(saved func() int) {
		require.Zero(t, saved())
		time.Sleep(settle)
		require.Equal(t, 1, saved(), "none at all is one that was missed")
		time.Sleep(11 * time.Hour)
		require.Equal(t, 1, saved())
		time.Sleep(time.Hour)
		require.Equal(t, 2, saved())
		time.Sleep(48 * time.Hour)
		require.Equal(t, 6, saved())
		list, err := m.folder.List()
		require.NoError(t, err)
		require.Len(t, list, 2)
	})
}

// saveAt saves a snapshot with a time that is off from the start of the bubble.
func saveAt(t *testing.T, m machine, off time.Duration) {
	t.Helper()
	store := m.open(t)
	put(t, store, "/a", "1")
	saved := m.save(t, "", store)
	require.NoError(t, store.Close())
	retime(t, saved, time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC).Add(off))
}

func TestScheduleAfterATimeOff(t *testing.T) {
	m := newMachine(t)
	saveAt(t, m, -13*time.Hour)
	scheduled(t, m, "0 */12 * * *", func(saved func() int) {
		time.Sleep(settle)
		require.Equal(t, 1, saved(), "the one at midnight was missed")
	})
}

func TestScheduleIsNotAskedByRestarts(t *testing.T) {
	m := newMachine(t)
	saveAt(t, m, 0)
	for range 3 {
		scheduled(t, m, "0 */12 * * *", func(saved func() int) {
			time.Sleep(11 * time.Hour)
			require.Zero(t, saved())
		})
	}
}

// TestScheduleWithoutAClock checks a machine whose clock is long before the newest snapshot at each
// boot.
func TestScheduleWithoutAClock(t *testing.T) {
	m := newMachine(t)
	saveAt(t, m, 20*365*24*time.Hour)
	scheduled(t, m, "0 0 1 * *", func(saved func() int) {
		time.Sleep(doubt - time.Second)
		require.Zero(t, saved(), "one that restarts all the time must not save each time")
		time.Sleep(time.Second)
		require.Equal(t, 1, saved(), "one that is never up for a month must save at all")
		time.Sleep(24 * time.Hour)
		require.Equal(t, 1, saved())
	})
}

// TestScheduleOfAnotherDatabase checks that the schedule tries only once with a database that has
// no snapshots.
func TestScheduleOfAnotherDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		source := func(context.Context) (*Stream, error) {
			asked++
			return nil, ErrUnserved
		}
		table, err := cron.ParseStandard("@every 1h")
		require.NoError(t, err)
		s := &Schedule{Folder: Folder(t.TempDir()), Source: source, Timetable: table, Keep: 1}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Hour)
		defer cancel()
		require.NoError(t, s.Run(ctx))
		require.Equal(t, 1, asked)
	})
}

func TestScheduleEarlyClock(t *testing.T) {
	table, err := cron.ParseStandard("CRON_TZ=UTC 0 */12 * * *")
	require.NoError(t, err)
	s := &Schedule{Timetable: table}
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	require.Equal(t, 12*time.Hour, s.untilNext(noon))
	require.Equal(t, 12*time.Hour+time.Second, s.untilNext(noon.Add(-time.Second)), "it woke a second early, and has saved")
	require.Equal(t, 2*time.Minute, s.untilNext(noon.Add(-2*time.Minute)))
	every, err := cron.ParseStandard("* * * * *")
	require.NoError(t, err)
	s.Timetable = every
	require.Equal(t, 30*time.Second, s.untilNext(noon.Add(30*time.Second)))
}
