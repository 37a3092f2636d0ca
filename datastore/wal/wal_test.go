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

// history is the knowledge of a log's user.
type history struct {
	*testing.T
	rng  *rand.Rand
	disk *waltest.Disk
	log  *wal.Log
	// from is the first sequence that the checkpoint does not have; frames are those of that
	// sequence and later ones, by sequence.
	from   uint64
	frames map[uint64][]string
	serial int
	// doubtful is a frame that is being appended.
	doubtful string
}

// TestPowerCut cuts the power at every sync. All data that is not synced is dropped, torn or
// reordered. The log must have all frames that were acknowledged since the checkpoint, in order,
// and at most the doubtful one in addition.
func TestPowerCut(t *testing.T) {
	seed := *cutSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test ./datastore/wal -run TestPowerCut -cut.seed=%d -cut.rounds=%d", seed, *cutRounds)
	rng := rand.New(rand.NewPCG(seed, 0))
	cuts := 0
	for range *cutRounds {
		disk, _ := create(t, rng)
		h := &history{T: t, rng: rng, disk: disk, from: 1, frames: map[uint64][]string{}}
		cut := func() { cuts++ }
		h.reopen(cut)
		for range 2 + rng.IntN(60) {
			switch rng.IntN(12) {
			case 0:
				h.rotate(cut)
			case 1:
				h.reopen(cut)
			default:
				h.append(rng.IntN(3000), cut)
			}
		}
		if rng.IntN(2) == 0 { // a log after a power cut must work as well as one after a clean start
			h.disk = h.disk.CutPower()
			h.reopen(cut)
			h.append(100, cut)
		}
	}
	t.Logf("%d power cuts", cuts)
}

func (h *history) append(size int, cut func()) {
	h.serial++
	h.doubtful = fmt.Sprint(h.serial, " ", strings.Repeat("x", size))
	h.cutOnSync(cut)
	require.NoError(h, h.log.Append([]byte(h.doubtful)))
	h.frames[h.log.Seq()] = append(h.frames[h.log.Seq()], h.doubtful)
	h.doubtful = ""
	h.disk.OnSync = nil
	h.check(h.disk.CutPower())
}

// rotate moves the checkpoint on, so that it is one sequence behind the log.
func (h *history) rotate(cut func()) {
	if h.log.Used() == 0 {
		return
	}
	h.from = h.log.Seq()
	delete(h.frames, h.from-1)
	h.cutOnSync(cut)
	require.NoError(h, h.log.Rotate())
	h.disk.OnSync = nil
}

// cutOnSync cuts the power at each sync of the log, checks a copy of the disk, and continues.
func (h *history) cutOnSync(cut func()) {
	h.disk.OnSync = func() {
		cut()
		h.check(h.disk.CutPower())
	}
}

// check opens a disk that has lost power.
func (h *history) check(disk *waltest.Disk) *wal.Log {
	var want, got []string
	for _, seq := range []uint64{h.from, h.from + 1} {
		want = append(want, h.frames[seq]...)
	}
	log, found, err := wal.Open(disk.Files(), h.from, true, func(p []byte) error {
		got = append(got, string(p))
		return nil
	})
	require.NoError(h, err)
	require.NoError(h, found.Damage)
	if len(got) == len(want)+1 && h.doubtful != "" {
		want = append(want, h.doubtful)
	}
	require.True(h, slices.Equal(want, got), "%d frames of %d", len(got), len(want))
	return log
}

// reopen puts all frames into the checkpoint, as the store does when it opens.
func (h *history) reopen(cut func()) {
	h.log = h.check(h.disk)
	h.cutOnSync(cut)
	if h.log.Spare() {
		require.NoError(h, h.log.Begin())
	}
	h.from = h.log.Seq()
	clear(h.frames)
	require.NoError(h, h.log.Begin())
	h.disk.OnSync = nil
}

// create begins a log and returns its disk.
func create(t testing.TB, rng *rand.Rand) (*waltest.Disk, *wal.Log) {
	disk := waltest.New(rng)
	log, err := wal.Create(disk.Files(), 1)
	require.NoError(t, err)
	return disk, log
}

// TestDamageIsFound checks that frames before the damage are kept, and that readable frames behind
// it are reported.
func TestDamageIsFound(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const frame = 24 + 1504
	// In the empty, the first and the second frame.
	for where, kept := range map[int64]int{0: 0, 30: 0, 24 + 30: 0, frame: 0, frame + 100: 1} {
		disk, log := create(t, rng)
		for range 3 {
			require.NoError(t, log.Append(make([]byte, 1500)))
		}
		disk.Damage(1, where)
		again, found, err := wal.Open(disk.Files(), 1, true, func([]byte) error { return nil })
		require.NoError(t, err)
		require.Nil(t, again)
		require.ErrorIs(t, found.Damage, wal.ErrDamaged, "offset %d", where)
		require.Equal(t, kept, found.Frames, "offset %d", where)
		require.NotEmpty(t, found.Behind)
		require.EqualValues(t, 2, found.Next)
	}
	disk, log := create(t, rng)
	require.NoError(t, log.Append([]byte("one")))
	require.NoError(t, log.Rotate())
	require.NoError(t, log.Append([]byte("two")))
	disk.Damage(1, 5)
	_, found, err := wal.Open(disk.Files(), 1, true, func([]byte) error { return errors.New("it begins with a gap") })
	require.NoError(t, err)
	require.ErrorIs(t, found.Damage, wal.ErrDamaged, "a sequence is gone")
}

// TestEmptiedLogIsDamage checks that an emptied log is damage, whatever sequence the checkpoint
// names: the first frame of that sequence was on the disk.
func TestEmptiedLogIsDamage(t *testing.T) {
	for from := uint64(1); from < 5; from++ {
		empty := waltest.New(rand.New(rand.NewPCG(1, 2)))
		_, found, err := wal.Open(empty.Files(), from, true, func([]byte) error { return nil })
		require.NoError(t, err)
		require.ErrorIs(t, found.Damage, wal.ErrDamaged, "sequence %d is gone", from)
	}
}

// TestDamageAtTheEndIsTold checks that damage at the end is reported as Torn. It cannot be told
// apart from a torn write, but both differ from a log that ended cleanly.
func TestDamageAtTheEndIsTold(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, where := range []int64{-1, 24, 30, 40, 44, 60, 66, 72, 79} { // in the last frame or its mark
		disk, log := create(t, rng)
		require.NoError(t, log.Append([]byte("the only one, 24 bytes..")))
		if where >= 0 {
			disk.Damage(1, where)
		}
		again, found, err := wal.Open(disk.Files(), 1, true, func([]byte) error { return nil })
		require.NoError(t, err)
		require.NoError(t, found.Damage)
		require.Equal(t, where >= 0, found.Torn, "offset %d", where)
		require.NoError(t, again.Begin())
		_, found, err = wal.Open(disk.Files(), 1, true, func([]byte) error { return nil })
		require.NoError(t, err)
		require.NoError(t, found.Damage, "what was torn has an end now")
	}
	for _, size := range []int64{0, 24, 40} {
		disk, log := create(t, rng)
		require.NoError(t, log.Append([]byte("the only one, 24 bytes..")))
		disk.Truncate(1, size)
		_, found, err := wal.Open(disk.Files(), 1, true, func([]byte) error { return nil })
		require.NoError(t, err)
		require.True(t, found.Torn || found.Damage != nil, "cut off at %d", size)
	}
}

// TestRefusedWrite checks that a frame refused by a full disk leaves no trace once there is room
// again.
func TestRefusedWrite(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	disk, log := create(t, rng)
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
	_, found, err := wal.Open(disk.CutPower().Files(), 1, true, func(p []byte) error {
		got = append(got, string(p))
		return nil
	})
	require.NoError(t, err)
	require.NoError(t, found.Damage)
	require.Equal(t, want, got)

	disk.Fail = func(string) error { return full }
	require.Error(t, log.Append([]byte("refused")))
	require.Error(t, log.Rotate())
	disk.Fail = nil
	require.NoError(t, log.Rotate())
	_, found, err = wal.Open(disk.CutPower().Files(), 1, true, func([]byte) error { return nil })
	require.NoError(t, err)
	require.NoError(t, found.Damage, "what was refused is no damage")
}

func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var want, got []string
	for i := range 5 {
		files, err := wal.OpenFiles(path)
		require.NoError(t, err)
		got = nil
		var log *wal.Log
		if i == 0 {
			log, err = wal.Create(files, 1)
		} else {
			log, _, err = wal.Open(files, 1, true, func(p []byte) error { got = append(got, string(p)); return nil })
		}
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

// FuzzOpen opens files with arbitrary contents: Open must report what it found, and a log that it
// returns must work.
func FuzzOpen(f *testing.F) {
	disk, log := create(f, rand.New(rand.NewPCG(5, 6)))
	require.NoError(f, log.Append([]byte("frame")))
	content := make([]byte, 200)
	_, err := disk.Files()[1].ReadAt(content, 0)
	require.NoError(f, err)
	f.Add(content, []byte{}, uint64(1), true)
	f.Add(content, content, uint64(1), false)
	f.Fuzz(func(t *testing.T, one, zero []byte, from uint64, marked bool) {
		from = min(max(from, 1), 1<<40)
		disk := waltest.New(rand.New(rand.NewPCG(0, 0)))
		files := disk.Files()
		_, _ = files[0].WriteAt(zero, 0)
		_, _ = files[1].WriteAt(one, 0)
		read := 0
		log, found, err := wal.Open(files, from, marked, func([]byte) error { read++; return nil })
		require.NoError(t, err)
		require.Equal(t, found.Frames, read)
		require.Equal(t, found.Damage == nil, log != nil)
		require.GreaterOrEqual(t, found.Next, from)
		if log != nil {
			next := log.Seq()
			require.NoError(t, log.Append([]byte("new")))
			found := ""
			_, _, err = wal.Open(files, next, true, func(p []byte) error { found = string(p); return nil })
			require.NoError(t, err)
			require.Equal(t, "new", found)
		}
	})
}

// TestLongFrame checks that a frame too long for Open is not written.
func TestLongFrame(t *testing.T) {
	_, log := create(t, rand.New(rand.NewPCG(1, 1)))
	refused := (*wal.WriteError)(nil)
	require.ErrorAs(t, log.Append(make([]byte, 64<<20+1)), &refused)
	require.NoError(t, log.Append([]byte("short")))
	require.NoError(t, log.Close())
}
