package bolt

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

var (
	damageRounds = flag.Int("damage.rounds", 100, "damaged stores of TestDamage")
	damageSeed   = flag.Uint64("damage.seed", 0, "seed of TestDamage; 0 takes one from the clock")
)

// patient is a stopped store that the test will damage, and its expected content.
type patient struct {
	files map[string][]byte // by name
	model *model
	state map[string]KV // the latest versions
	// snapshot is the store's file at an earlier moment.
	snapshot []byte
}

// TestDamage damages stores. Each store must be repaired, and then have all its data or report what
// it lost, or be refused with advice. No data may ever be wrong without a report.
func TestDamage(t *testing.T) {
	seed := *damageSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test ./datastore/bolt -run TestDamage -damage.seed=%d -damage.rounds=%d", seed, *damageRounds)
	rng := rand.New(rand.NewPCG(seed, 0))
	patients := []*patient{grow(t, rng, false), grow(t, rng, true), grow(t, rng, true)}
	outcomes := map[string]int{}
	for round := range *damageRounds {
		d := &damaged{T: t, rng: rng, patient: patients[rng.IntN(len(patients))], path: filepath.Join(t.TempDir(), "state.db")}
		for name, b := range d.files {
			require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(d.path), name), b, 0o600))
		}
		for range 1 + rng.IntN(2)*rng.IntN(3) {
			d.damage()
		}
		outcome := d.open()
		outcomes[outcome]++
		if t.Failed() {
			t.Fatalf("round %d: %v", round, d.done)
		}
		require.NoError(t, os.RemoveAll(filepath.Dir(d.path)))
	}
	t.Logf("%v", outcomes)
}

// grow makes a store with history, large values, leases and deletions. If killed is true, some of
// it is only in the log.
func grow(t *testing.T, rng *rand.Rand, killed bool) *patient {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(path, Options{limit: 400_000, Volatile: []string{"/volatile/"}})
	require.NoError(t, err)
	p := &patient{model: newModel(), files: map[string][]byte{}}
	for id := int64(1); id <= 3; id++ {
		_, err := s.Grant(t.Context(), id, 1_000_000)
		require.NoError(t, err)
	}
	for n := range 1500 {
		w := Write{Key: fmt.Sprintf("/key/%03d", rng.IntN(400)), Value: bytes.Repeat([]byte{byte(n)}, rng.IntN(500))}
		switch rng.IntN(20) {
		case 0:
			w.Value = bytes.Repeat([]byte{byte(n)}, rng.IntN(20_000))
		case 1:
			w.Lease = 1 + rng.Int64N(3)
		case 2, 3:
			w.Delete = true
		}
		p.write(t, s, w)
		switch n {
		case 500, 1000:
			_, err := s.Compact(t.Context(), p.model.revision-200)
			require.NoError(t, err)
		case 800:
			scrubbed(t, s)
			c, err := s.Copy(t.Context())
			require.NoError(t, err)
			var b bytes.Buffer
			_, err = c.WriteTo(&b)
			require.NoError(t, errors.Join(err, c.Close()))
			p.snapshot = b.Bytes()
		}
	}
	if killed {
		require.NoError(t, s.Checkpoint(t.Context()))
		for range rng.IntN(40) {
			p.write(t, s, Write{Key: fmt.Sprintf("/key/%03d", rng.IntN(400)), Value: make([]byte, rng.IntN(500))})
		}
		p.keep(t, path)
		require.NoError(t, s.Close())
	} else {
		require.NoError(t, s.Close())
		p.keep(t, path)
	}
	p.state = map[string]KV{}
	for _, e := range p.model.events {
		p.state[e.KV.Key] = *e.KV
		if e.Deleted {
			delete(p.state, e.KV.Key)
		}
	}
	return p
}

func (p *patient) write(t *testing.T, s *Store, w Write) {
	res, err := s.Write(t.Context(), w)
	require.NoError(t, err)
	switch {
	case res.Revision == p.model.revision: // nothing to delete
	case w.Delete:
		p.model.write(Event{Deleted: true, KV: &KV{Key: w.Key, Mod: res.Revision}, Prev: res.Prev})
	default:
		p.model.write(Event{KV: res.KV, Prev: res.Prev})
	}
}

// keep reads the files as they are, without the hole at the end of the file.
func (p *patient) keep(t *testing.T, path string) {
	for _, name := range goldenFiles() {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		require.NoError(t, err)
		if name == "state.db" {
			commits, err := format.Image{File: bytes.NewReader(b), Size: int64(len(b))}.Commits()
			require.NoError(t, err)
			b = b[:commits[0].Pages*format.PageSize]
		}
		p.files[name] = b
	}
}

type damaged struct {
	*testing.T
	*patient
	rng  *rand.Rand
	path string
	done []string
}

// damage changes one thing in one file, mostly where the file has data.
func (d *damaged) damage() {
	name := goldenFiles()[max(0, d.rng.IntN(5)-2)]
	path := filepath.Join(filepath.Dir(d.path), name)
	b, err := os.ReadFile(path)
	require.NoError(d, err)
	used := len(bytes.TrimRight(b, "\x00"))
	if used == 0 {
		return
	}
	blocks := (used + format.PageSize - 1) / format.PageSize
	at := func() int { return d.rng.IntN(blocks) * format.PageSize }
	what := ""
	switch d.rng.IntN(7) {
	case 0, 1:
		n := d.rng.IntN(used)
		b[n] ^= 1 << d.rng.IntN(8)
		what = fmt.Sprintf("bit at %d", n)
	case 2: // in the first bytes of a page
		n := min(at()+d.rng.IntN(64), used-1)
		b[n] ^= 1 << d.rng.IntN(8)
		what = fmt.Sprintf("bit at %d", n)
	case 3:
		n := d.rng.IntN(used + 1)
		b = b[:n]
		what = fmt.Sprintf("cut off at %d", n)
	case 4:
		n := at()
		clear(b[n:min(n+format.PageSize, len(b))])
		what = fmt.Sprintf("zeros at %d", n)
	case 5:
		one, two := at(), at()
		block := bytes.Clone(b[one:min(one+format.PageSize, len(b))])
		copy(b[one:], b[two:min(two+format.PageSize, len(b))])
		copy(b[two:], block)
		what = fmt.Sprintf("%d and %d swapped", one, two)
	case 6:
		n := d.rng.IntN(used)
		for i := range b[n:min(n+512, len(b))] {
			b[n+i] = byte(d.rng.Uint32())
		}
		what = fmt.Sprintf("noise at %d", n)
	}
	d.done = append(d.done, name+": "+what)
	require.NoError(d, os.WriteFile(path, b, 0o600))
}

// open starts the store until it is sound or refused, and returns which.
func (d *damaged) open() string {
	o := Options{Volatile: []string{"/volatile/"}}
	if d.rng.IntN(2) == 0 {
		o.Restore = func() (io.ReadCloser, string, error) { return io.NopCloser(bytes.NewReader(d.snapshot)), "monday", nil }
	}
	outcome, lost, repairs := "nothing was hit", false, 0
	for range 4 {
		before := d.content()
		examined := rescue.Examine(d.path)
		require.Equal(d, before, d.content(), "an examination changes nothing: %v", d.done)
		s, err := Open(d.path, o)
		if examined == nil {
			require.NoError(d, err, "examined and found sound: %v", d.done)
			require.Len(d, s.Repairs(), repairs, "examined and found sound: %v", d.done)
		}
		if err != nil {
			require.ErrorContains(d, err, "snapshot", "%v", d.done)
			require.Equal(d, before, d.content(), "what is refused is left alone: %v", d.done)
			if o.Restore != nil {
				d.Logf("%v: %v", d.done, err)
				return "refused although there is a snapshot"
			}
			return "refused"
		}
		repairs = len(s.Repairs())
		for _, r := range s.Repairs() {
			lost = lost || r.Lost != ""
			outcome = "repaired"
			for _, name := range r.Aside {
				require.FileExists(d, name)
			}
		}
		met := d.compare(s, lost)
		if met == nil {
			met = s.Check()
		}
		require.NoError(d, s.Close())
		if met == nil {
			d.told(o, repairs)
			if lost {
				outcome = "repaired with losses"
			}
			d.again(o)
			return outcome
		}
		require.ErrorIs(d, met, format.ErrDamaged, "%v", d.done)
		outcome = "met later"
	}
	require.Fail(d, "it does not get well", "%v", d.done)
	return ""
}

// content returns the content of the store's files.
func (d *damaged) content() map[string]string {
	files := map[string]string{}
	for _, name := range goldenFiles() {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(d.path), name))
		require.NoError(d, err)
		files[name] = string(b)
	}
	return files
}

// compare reads everything. It returns the damage that the store met.
func (d *damaged) compare(s *Store, lost bool) error {
	require.GreaterOrEqual(d, s.Revision(), d.model.revision, "revisions went back: %v", d.done)
	list, err := s.Range(context.Background(), Query{Key: "\x00", End: allKeys})
	if err != nil {
		return err
	}
	got := map[string]KV{}
	for _, kv := range list.KVs {
		got[kv.Key] = *kv
	}
	if !lost {
		require.Equal(d, d.state, got, "%v", d.done)
		require.Equal(d, []int64{1, 2, 3}, s.Leases())
	}
	for key, kv := range got { // some keys may be lost, but the values of the others must be real
		require.True(d, slices.ContainsFunc(d.model.events, func(e Event) bool {
			return e.KV.Mod == kv.Mod && reflect.DeepEqual(*e.KV, kv)
		}), "%s is as it never was: %v", key, d.done)
	}
	for from := s.Compacted() + 1; from <= d.model.revision; {
		events, next, err := s.history(Range{Key: "\x00", End: allKeys, PrevKV: true}, from)
		if err != nil {
			return err
		}
		want := d.model.events[from-format.FirstRevision-1 : next-format.FirstRevision-1]
		require.Equal(d, want, events, "history: %v", d.done)
		from = next
	}
	return nil
}

// told checks that repairs are kept until they have been reported.
func (d *damaged) told(o Options, repairs int) {
	s, err := Open(d.path, o)
	require.NoError(d, err, "%v", d.done)
	require.Len(d, s.Repairs(), repairs, "%v", d.done)
	require.NoError(d, s.RepairsReported())
	require.NoError(d, s.Close())
}

// again checks that a repair lasts.
func (d *damaged) again(o Options) {
	s, err := Open(d.path, o)
	require.NoError(d, err, "%v", d.done)
	require.Empty(d, s.Repairs(), "%v", d.done)
	before := s.Revision()
	res, err := s.Write(d.Context(), Write{Key: "/after"})
	require.NoError(d, err)
	require.Greater(d, res.Revision, max(before, d.model.revision))
	require.NoError(d, s.Check(), "%v", d.done)
	require.NoError(d, s.Close())
}
