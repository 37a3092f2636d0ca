package wal_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/wal"
	"github.com/mote-k8s/mote/datastore/wal/waltest"
)

var (
	cutRounds = flag.Int("cut.rounds", 15, "logs of TestPowerCut, each cut off at every sync")
	cutSeed   = flag.Uint64("cut.seed", 0, "seed of TestPowerCut; 0 takes one from the clock")
)

// history is what the user of a log knows.
type history struct {
	*testing.T
	rng  *rand.Rand
	disk *waltest.Disk
	log  *wal.Log
	// from is what the checkpoint has; frames are those from there on, by sequence.
	from   uint64
	frames map[uint64][]string
	serial int
	// doubtful is a frame that is being appended.
	doubtful string
}

// TestPowerCut cuts the power at every sync, with all that is not synced dropped, torn or reordered: the log must have
// all frames that were acknowledged since the checkpoint, in order, and at most the one in doubt besides.
func TestPowerCut(t *testing.T) {
	seed := *cutSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test ./datastore/wal -run TestPowerCut -cut.seed=%d -cut.rounds=%d", seed, *cutRounds)
	rng := rand.New(rand.NewPCG(seed, 0))
	cuts := 0
	for range *cutRounds {
		h := &history{T: t, rng: rng, disk: waltest.New(rng), from: 1, frames: map[uint64][]string{}}
		h.reopen()
		for range 2 + rng.IntN(60) {
			switch rng.IntN(12) {
			case 0:
				h.rotate()
			case 1:
				h.reopen()
			default:
				h.append(rng.IntN(3000), func() { cuts++ })
			}
		}
		if rng.IntN(2) == 0 { // what follows a power cut is as good as what follows a start
			h.disk = h.disk.CutPower()
			h.reopen()
			h.append(100, func() { cuts++ })
		}
	}
	t.Logf("%d power cuts", cuts)
}

func (h *history) append(size int, cut func()) {
	h.serial++
	h.doubtful = fmt.Sprint(h.serial, " ", strings.Repeat("x", size))
	h.disk.OnSync = func() {
		cut()
		h.check(h.disk.CutPower())
	}
	require.NoError(h, h.log.Append([]byte(h.doubtful)))
	h.frames[h.log.Seq()] = append(h.frames[h.log.Seq()], h.doubtful)
	h.doubtful = ""
	h.disk.OnSync = nil
	h.check(h.disk.CutPower())
}

// rotate has the checkpoint follow one sequence behind.
func (h *history) rotate() {
	if h.log.Used() == 0 {
		return
	}
	h.from = h.log.Seq()
	delete(h.frames, h.from-1)
	h.log.Rotate()
}

// check opens a disk that has lost power.
func (h *history) check(disk *waltest.Disk) *wal.Log {
	var want, got []string
	for _, seq := range []uint64{h.from, h.from + 1} {
		want = append(want, h.frames[seq]...)
	}
	log, err := wal.Open(disk.Files(), h.from, func(p []byte) error {
		got = append(got, string(p))
		return nil
	})
	require.NoError(h, err)
	if len(got) == len(want)+1 && h.doubtful != "" {
		want = append(want, h.doubtful)
	}
	require.True(h, slices.Equal(want, got), "%d frames of %d", len(got), len(want))
	return log
}

// reopen puts all into the checkpoint, as the store does when it opens.
func (h *history) reopen() {
	h.log = h.check(h.disk)
	h.from = h.log.Seq()
	clear(h.frames)
}

func TestDamageIsFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, where := range []int64{0, 30, 500, 2000} { // in the first and the second frame
		disk := waltest.New(rng)
		log, err := wal.Open(disk.Files(), 1, nil)
		require.NoError(t, err)
		for range 3 {
			require.NoError(t, log.Append(make([]byte, 1500)))
		}
		disk.Damage(1, where)
		_, err = wal.Open(disk.Files(), 1, func([]byte) error { return nil })
		require.ErrorIs(t, err, wal.ErrDamaged, "offset %d", where)
	}
	disk := waltest.New(rng)
	log, err := wal.Open(disk.Files(), 1, nil)
	require.NoError(t, err)
	require.NoError(t, log.Append([]byte("one")))
	log.Rotate()
	require.NoError(t, log.Append([]byte("two")))
	disk.Damage(1, 5)
	_, err = wal.Open(disk.Files(), 1, func([]byte) error { return nil })
	require.ErrorIs(t, err, wal.ErrDamaged, "a sequence is gone")
}

// TestRefusedWrite: a full disk refuses a frame, and there is no trace of it when there is room again.
func TestRefusedWrite(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	disk := waltest.New(rng)
	log, err := wal.Open(disk.Files(), 1, nil)
	require.NoError(t, err)
	var want []string
	full := errors.New("full")
	for i := range 400 {
		disk.Fail = nil
		if i%3 == 0 {
			disk.Fail = func(op string) error {
				if op == "write" {
					return full
				}
				return nil
			}
		}
		payload := strings.Repeat(fmt.Sprint(i, " "), rng.IntN(1000))
		err := log.Append([]byte(payload))
		if disk.Fail == nil {
			require.NoError(t, err)
			want = append(want, payload)
			continue
		}
		var refused *wal.WriteError
		require.ErrorAs(t, err, &refused)
		require.ErrorIs(t, err, full)
	}
	var got []string
	_, err = wal.Open(disk.CutPower().Files(), 1, func(p []byte) error {
		got = append(got, string(p))
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var want, got []string
	for i := range 5 {
		files, err := wal.OpenFiles(path)
		require.NoError(t, err)
		got = nil
		log, err := wal.Open(files, 1, func(p []byte) error { got = append(got, string(p)); return nil })
		require.NoError(t, err)
		require.Equal(t, want, got)
		if i == 0 {
			for n := range 1000 {
				want = append(want, fmt.Sprint("frame ", n))
				require.NoError(t, log.Append([]byte(want[n])))
			}
		}
		require.NoError(t, log.Close())
	}
}

// FuzzOpen: whatever is in the files, Open says what it found or that they are damaged.
func FuzzOpen(f *testing.F) {
	disk := waltest.New(rand.New(rand.NewPCG(5, 6)))
	log, err := wal.Open(disk.Files(), 1, nil)
	require.NoError(f, err)
	require.NoError(f, log.Append([]byte("frame")))
	content := make([]byte, 200)
	_, err = disk.Files()[1].ReadAt(content, 0)
	require.NoError(f, err)
	f.Add(content, []byte{}, uint64(1))
	f.Fuzz(func(t *testing.T, one, zero []byte, from uint64) {
		disk := waltest.New(rand.New(rand.NewPCG(0, 0)))
		files := disk.Files()
		_, _ = files[0].WriteAt(zero, 0)
		_, _ = files[1].WriteAt(one, 0)
		_, err := wal.Open(files, max(from, 1), func([]byte) error { return nil })
		if err != nil {
			require.ErrorIs(t, err, wal.ErrDamaged)
		}
	})
}
