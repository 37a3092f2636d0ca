package bolt

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/wal"
	"github.com/mote-k8s/mote/datastore/wal/waltest"
)

var (
	cutRounds = flag.Int("cut.rounds", 60, "power cuts of TestPowerCut, at least")
	cutSeed   = flag.Uint64("cut.seed", 0, "seed of TestPowerCut; 0 takes one from the clock")
)

// cutter writes to a store. At each sync it cuts the power of a copy of the disk.
type cutter struct {
	*testing.T
	rng   *rand.Rand
	store *Store
	disk  *waltest.Disk
	path  string
	cuts  int

	// acknowledged is the required content of the keys that are not volatile; doubtful is a write
	// under way.
	acknowledged map[string]string
	doubtful     *Write
	// revision is the highest revision that any client has received.
	revision int64
	// before is the file as it was when the running checkpoint began.
	before []byte
}

// TestPowerCut cuts the power at every sync of the log and of checkpoints. All data that was not
// synced is dropped, torn or reordered. Every acknowledged write must be there, revisions must
// neither repeat nor go back, and the file must be sound. The test knows the order of bbolt's
// commits: pages, sync, header, sync.
func TestPowerCut(t *testing.T) {
	seed := *cutSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test ./datastore/bolt -run TestPowerCut -cut.seed=%d -cut.rounds=%d", seed, *cutRounds)
	rng := rand.New(rand.NewPCG(seed, 0))
	cuts := 0
	for cuts < *cutRounds {
		c := &cutter{T: t, rng: rng, path: filepath.Join(t.TempDir(), "state.db"), disk: newDisk(t, rng), acknowledged: map[string]string{}}
		c.run()
		cuts += c.cuts
	}
	t.Logf("%d power cuts", cuts)
}

// newDisk returns a disk with the log of a new store.
func newDisk(t *testing.T, rng *rand.Rand) *waltest.Disk {
	disk := waltest.New(rng)
	_, err := wal.Create(disk.Files(), 1)
	require.NoError(t, err)
	return disk
}

func (c *cutter) options(disk *waltest.Disk) Options {
	return Options{
		Volatile: []string{"/volatile/"},
		openLog:  func(string) (wal.Files, error) { return disk.Files(), nil },
	}
}

func (c *cutter) open() {
	o := c.options(c.disk)
	o.atCheckpoint = c.atCheckpoint
	var err error
	c.store, err = Open(c.path, o)
	require.NoError(c, err)
	c.disk.OnSync = func() { c.cut(c.file()) }
}

// crash continues with the files that a power cut leaves. The power may fail again while they are
// opened.
func (c *cutter) crash() {
	file := c.file()
	disk := c.disk.CutPower()
	c.disk.OnSync = nil
	c.store.options.atCheckpoint = func(bool) {}
	require.NoError(c, c.store.Close())
	c.disk, c.path = disk, filepath.Join(c.TempDir(), "state.db")
	require.NoError(c, os.WriteFile(c.path, file, 0o600))
	c.open()
	c.revision = max(c.revision, c.store.Revision())
}

func (c *cutter) run() {
	c.open()
	for range 30 {
		switch c.rng.IntN(12) {
		case 10:
			c.crash()
		case 0:
			require.NoError(c, c.store.Checkpoint(c.Context()))
		case 1:
			_, _ = c.store.Compact(c.Context(), c.revision-c.rng.Int64N(20))
		case 2, 3:
			c.write(Write{Key: fmt.Sprint("/volatile/", c.rng.IntN(3)), Value: []byte("alive")})
		case 4:
			c.write(Write{Key: c.key(), Delete: true})
		default:
			value := fmt.Sprint(c.revision, " ", strings.Repeat("x", c.rng.IntN(3000)))
			c.write(Write{Key: c.key(), Value: []byte(value)})
		}
	}
	require.NoError(c, c.store.Close())
}

func (c *cutter) key() string { return fmt.Sprint("/durable/", c.rng.IntN(8)) }

func (c *cutter) write(w Write) {
	if strings.HasPrefix(w.Key, "/durable/") {
		c.doubtful = &w
	}
	res, err := c.store.Write(c.Context(), w)
	require.NoError(c, err)
	if c.doubtful != nil {
		c.apply(c.acknowledged, w)
	}
	c.doubtful = nil
	c.revision = res.Revision
	if c.rng.IntN(4) == 0 {
		c.cut(c.file())
	}
}

func (c *cutter) apply(state map[string]string, w Write) {
	if state[w.Key] = string(w.Value); w.Delete {
		delete(state, w.Key)
	}
}

// file returns the bbolt file; between checkpoints all of it is synced.
func (c *cutter) file() []byte {
	b, err := os.ReadFile(c.path)
	require.NoError(c, err)
	return b
}

// atCheckpoint derives the syncs of bbolt's commit from the difference that the commit has made.
func (c *cutter) atCheckpoint(done bool) {
	if !done {
		c.before = c.file()
		return
	}
	after := c.file()
	image := append(append([]byte{}, c.before...), make([]byte, len(after)-len(c.before))...)
	var changed []int
	for at := 0; at < len(after); at += format.PageSize {
		if !bytes.Equal(image[at:at+format.PageSize], after[at:at+format.PageSize]) {
			changed = append(changed, at)
		}
	}
	for stage := range 2 { // data pages, then the header
		torn := append([]byte{}, image...)
		for _, at := range changed {
			if header := at < 2*format.PageSize; header != (stage == 1) {
				continue
			}
			copy(image[at:at+format.PageSize], after[at:])
			for sector := at; sector < at+format.PageSize; sector += 512 {
				if c.rng.IntN(2) == 0 {
					copy(torn[sector:sector+512], after[sector:])
				}
			}
		}
		c.cut(torn)
		c.cut(image)
	}
}

// cut opens a copy of the files as a power cut may leave them.
func (c *cutter) cut(file []byte) {
	c.cuts++
	path := filepath.Join(c.TempDir(), "state.db")
	f, err := os.Create(path)
	require.NoError(c, err)
	hole := make([]byte, format.PageSize)
	for at := 0; at < len(file); at += format.PageSize { // most of the file is a hole
		if page := file[at : at+format.PageSize]; !bytes.Equal(page, hole) {
			_, err := f.WriteAt(page, int64(at))
			require.NoError(c, err)
		}
	}
	require.NoError(c, f.Truncate(int64(len(file))))
	require.NoError(c, f.Close())

	s, err := Open(path, c.options(c.disk.CutPower()))
	require.NoError(c, err)
	require.NoError(c, s.Check())
	require.GreaterOrEqual(c, s.Revision(), c.revision, "revisions went back")
	list, err := s.Range(c.Context(), Query{Key: "/durable/", End: "/durable0"})
	require.NoError(c, err)
	got := map[string]string{}
	for _, kv := range list.KVs {
		got[kv.Key] = string(kv.Value)
	}
	if fmt.Sprint(got) != fmt.Sprint(c.acknowledged) {
		want := map[string]string{}
		for key, value := range c.acknowledged {
			want[key] = value
		}
		if c.doubtful != nil {
			c.apply(want, *c.doubtful)
		}
		require.Equal(c, fmt.Sprint(want), fmt.Sprint(got))
	}
	res, err := s.Write(c.Context(), Write{Key: "/durable/after"})
	require.NoError(c, err)
	require.Greater(c, res.Revision, c.revision, "a revision was given out twice")
	require.NoError(c, s.Close())
	require.NoError(c, os.RemoveAll(filepath.Dir(path)))
}

// TestVolatile checks that volatile keys cost no write and survive a clean stop. A crash may lose
// them; then every client that may know them must be notified.
func TestVolatile(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	disk := newDisk(t, rng)
	c := &cutter{T: t, rng: rng, path: filepath.Join(t.TempDir(), "state.db"), disk: disk}
	open := func(path string, disk *waltest.Disk) *Store {
		s, err := Open(path, c.options(disk))
		require.NoError(t, err)
		return s
	}
	s := open(c.path, disk)
	put := func(s *Store, key string) int64 {
		res, err := s.Write(t.Context(), Write{Key: key})
		require.NoError(t, err)
		return res.Revision
	}
	durable := put(s, "/durable")
	put(s, "/volatile/a") // reserves revisions
	syncs := 0
	disk.OnSync = func() { syncs++ }
	var last int64
	for range 1000 {
		lease, err := s.Grant(t.Context(), 0, 1000)
		require.NoError(t, err)
		_, err = s.Write(t.Context(), Write{Key: "/volatile/leased", Lease: lease.ID})
		require.NoError(t, err)
		_, err = s.Revoke(t.Context(), lease.ID)
		require.NoError(t, err)
		last = put(s, "/volatile/a")
		_, err = s.Compact(t.Context(), last)
		require.NoError(t, err)
	}
	require.Zero(t, syncs)
	require.Less(t, s.newest().size(), 1000*leaseOverhead+10_000, "a compaction cleans memory")
	lease, err := s.Grant(t.Context(), 0, 1000)
	require.NoError(t, err)
	require.Zero(t, syncs)
	res, err := s.Write(t.Context(), Write{Key: "/leased", Lease: lease.ID})
	require.NoError(t, err)
	require.Equal(t, 1, syncs, "a durable key makes its lease durable")
	last = res.Revision
	disk.OnSync = nil

	crashed := filepath.Join(t.TempDir(), "state.db")
	require.NoError(t, os.WriteFile(crashed, c.file(), 0o600))
	after := open(crashed, disk.CutPower())
	require.Greater(t, after.Revision(), last)
	w := after.NewWatcher()
	for id, from := range []int64{durable, last, last + 1} {
		require.True(t, w.Watch(int64(id), Range{Key: "/durable", From: from}))
	}
	compacted := 0
	for compacted < 3 {
		messages, err := w.Next(t.Context())
		require.NoError(t, err)
		for _, m := range messages {
			if m.Ended {
				require.ErrorIs(t, m.Err, ErrCompacted)
				compacted++
			}
		}
	}
	w.Close()
	n, err := after.count(t.Context(), "/durable", "")
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	require.Greater(t, put(after, "/volatile/a"), after.Compacted())
	found, err := after.Lease(lease.ID)
	require.NoError(t, err)
	require.Equal(t, []string{"/leased"}, found.Keys)
	require.NoError(t, after.Close())

	require.NoError(t, s.Close())
	s = open(c.path, disk)
	require.Equal(t, last, s.Revision(), "a clean stop loses nothing")
	n, err = s.count(t.Context(), "/volatile/a", "")
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	require.NoError(t, s.Close())
}
