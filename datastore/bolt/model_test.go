package bolt

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

var (
	modelSeed = flag.Uint64("model.seed", 0, "seed of TestModel; 0 takes one from the clock")
	modelOps  = flag.Int("model.ops", 3000, "operations of TestModel")
)

// model is the store as a list of all its events.
type model struct {
	revision, compacted int64
	events              []Event // one for each revision from firstRevision+1 on
}

func newModel() *model { return &model{revision: format.FirstRevision} }

// at returns the version of key that existed at revision, or nil.
func (m *model) at(key string, revision int64) *KV {
	var kv *KV
	for _, e := range m.events {
		if e.KV.Mod > revision {
			break
		}
		if e.KV.Key == key {
			kv = e.KV
			if e.Deleted {
				kv = nil
			}
		}
	}
	return kv
}

func (m *model) write(e Event) {
	m.revision = e.KV.Mod
	m.events = append(m.events, e)
}

func (m *model) list(q Query) (kvs []*KV, count int64) {
	for i := range modelKeys {
		key := modelKey(i)
		kv := m.at(key, q.Revision)
		if kv == nil || !inRange(key, q.Key, q.End) {
			continue
		}
		count++
		if q.CountOnly || q.Limit > 0 && count > q.Limit {
			continue
		}
		if q.KeysOnly {
			bare := *kv
			bare.Value = nil
			kv = &bare
		}
		kvs = append(kvs, kv)
	}
	return kvs, count
}

const modelKeys = 30

func modelKey(i int) string { return fmt.Sprintf("/registry/things/%02d", i) }

// player applies random operations to a store and to the model, which must agree.
type player struct {
	t     *testing.T
	rng   *rand.Rand
	path  string
	store *Store
	model *model
}

func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test ./datastore/bolt -run TestModel -model.seed=%d -model.ops=%d", seed, *modelOps)
	p := &player{t: t, rng: rand.New(rand.NewPCG(seed, 0)), path: filepath.Join(t.TempDir(), "state.db"), model: newModel()}
	p.open()
	defer func() { require.NoError(t, p.store.Close()) }()
	steps := []struct {
		weight int
		step   func()
	}{
		{30, p.create}, {40, p.update}, {10, p.put}, {20, p.remove},
		{20, p.list}, {5, p.watch}, {2, p.compact}, {1, p.reopen}, {1, p.crash}, {2, p.checkpoint},
	}
	var wheel []func()
	for _, s := range steps {
		wheel = append(wheel, slices.Repeat([]func(){s.step}, s.weight)...)
	}
	for range *modelOps {
		wheel[p.rng.IntN(len(wheel))]()
		require.Equal(t, p.model.revision, p.store.Revision())
	}
	require.NoError(t, p.store.Check())
}

// open opens the store with layers that fill up all the time.
func (p *player) open() {
	var err error
	p.store, err = Open(p.path, Options{limit: 20_000})
	require.NoError(p.t, err)
}

func (p *player) key() string { return modelKey(p.rng.IntN(modelKeys)) }

func (p *player) value() []byte {
	return bytes.Repeat([]byte{byte('a' + p.rng.IntN(26))}, p.rng.IntN(3000))
}

// guard returns mostly the key's revision, sometimes another.
func (p *player) guard(kv *KV) int64 {
	if kv == nil || p.rng.IntN(5) == 0 {
		return 1 + p.rng.Int64N(p.model.revision)
	}
	return kv.Mod
}

func (p *player) write(w Write) {
	old := p.model.at(w.Key, p.model.revision)
	res, err := p.store.Write(p.t.Context(), w)
	require.NoError(p.t, err)
	require.Equal(p.t, old, res.Prev)
	require.Equal(p.t, w.Guard.holds(old), res.OK)
	if !res.OK || w.Delete && old == nil {
		require.Equal(p.t, p.model.revision, res.Revision)
		require.Nil(p.t, res.KV)
		return
	}
	revision := p.model.revision + 1
	require.Equal(p.t, revision, res.Revision)
	if w.Delete {
		p.model.write(Event{Deleted: true, KV: &KV{Key: w.Key, Mod: revision}, Prev: old})
		return
	}
	want := &KV{Key: w.Key, Value: w.Value, Create: revision, Mod: revision, Version: 1}
	if old != nil {
		want.Create, want.Version = old.Create, old.Version+1
	}
	require.Equal(p.t, want, res.KV)
	p.model.write(Event{KV: want, Prev: old})
}

func (p *player) create() {
	p.write(Write{Key: p.key(), Value: p.value(), Guard: &Guard{}})
}

func (p *player) update() {
	key := p.key()
	old := p.model.at(key, p.model.revision)
	guard := &Guard{Value: p.guard(old)}
	if old != nil && p.rng.IntN(4) == 0 {
		guard = &Guard{Field: GuardVersion, Value: old.Version}
	}
	p.write(Write{Key: key, Value: p.value(), Guard: guard})
}

func (p *player) put() {
	p.write(Write{Key: p.key(), Value: p.value()})
}

func (p *player) remove() {
	w := Write{Key: p.key(), Delete: true}
	if p.rng.IntN(2) == 0 {
		w.Guard = &Guard{Value: p.guard(p.model.at(w.Key, p.model.revision))}
	}
	p.write(w)
}

func (p *player) list() {
	q := Query{Key: p.key(), Limit: p.rng.Int64N(5), KeysOnly: p.rng.IntN(4) == 0, CountOnly: p.rng.IntN(4) == 0}
	q.End = []string{"", allKeys, p.key()}[p.rng.IntN(3)]
	if p.rng.IntN(3) > 0 {
		q.Revision = 1 + p.rng.Int64N(p.model.revision+1)
	}
	list, err := p.store.Range(p.t.Context(), q)
	require.Equal(p.t, p.model.revision, list.Revision)
	switch {
	case q.Revision > p.model.revision:
		require.ErrorIs(p.t, err, ErrFutureRevision)
		return
	case q.Revision != 0 && q.Revision < p.model.compacted:
		require.ErrorIs(p.t, err, ErrCompacted)
		return
	case q.Revision == 0:
		q.Revision = p.model.revision
	}
	require.NoError(p.t, err)
	want, count := p.model.list(q)
	require.Equal(p.t, want, list.KVs, "%+v", q)
	require.Equal(p.t, count, list.Count, "%+v", q)
}

// watch follows a range from a past or future revision over a few writes, and reads now and then.
func (p *player) watch() {
	r := Range{
		Key: p.key(), End: []string{"", allKeys, p.key()}[p.rng.IntN(3)],
		From: p.rng.Int64N(p.model.revision + 3), PrevKV: p.rng.IntN(2) == 0,
	}
	first := r.From
	if r.From == 0 {
		first = p.model.revision + 1
	}
	w := p.store.NewWatcher()
	defer w.Close()
	require.True(p.t, w.Watch(7, r))
	if !p.gone(r.From) {
		require.False(p.t, w.Watch(7, r), "the number is taken")
	}
	var got []Event
	compacted := false
	read := func() {
		w.RequestProgress()
		for progress := false; !progress; {
			messages, err := w.Next(p.t.Context())
			require.NoError(p.t, err)
			for _, m := range messages {
				got = append(got, m.Events...)
				compacted = compacted || errors.Is(m.Err, ErrCompacted)
				progress = progress || m.Watch == AllWatches
			}
		}
	}
	for range p.rng.IntN(20) {
		p.create()
		p.remove()
		if p.rng.IntN(3) == 0 {
			read()
		}
	}
	read()
	if p.gone(r.From) {
		require.True(p.t, compacted)
		require.Empty(p.t, got)
		return
	}
	var want []Event
	for _, e := range p.model.events {
		if e.KV.Mod >= first && inRange(e.KV.Key, r.Key, r.End) {
			if !r.PrevKV || e.KV.Mod <= p.model.compacted {
				e.Prev = nil
			}
			want = append(want, e)
		}
	}
	require.Equal(p.t, want, got, "watch %+v, told it is compacted: %v, at %d of %d", r, compacted, p.model.compacted, p.model.revision)
}

// gone reports whether a watch from a revision must list again. The history at the compacted
// revision itself is kept, unless a crash has skipped it.
func (p *player) gone(revision int64) bool {
	skipped := !slices.ContainsFunc(p.model.events, func(e Event) bool { return e.KV.Mod == revision })
	return revision != 0 && (revision < p.model.compacted || revision == p.model.compacted && revision > format.FirstRevision && skipped)
}

func (p *player) compact() {
	revision := p.rng.Int64N(p.model.revision + 2)
	_, err := p.store.Compact(p.t.Context(), revision)
	switch {
	case revision > p.model.revision:
		require.ErrorIs(p.t, err, ErrFutureRevision)
	case revision <= p.model.compacted:
		require.ErrorIs(p.t, err, ErrCompacted)
	default:
		require.NoError(p.t, err)
		p.model.compacted = revision
	}
}

func (p *player) reopen() {
	require.NoError(p.t, p.store.Check())
	require.NoError(p.t, p.store.Close())
	p.open()
	require.Equal(p.t, p.model.compacted, p.store.Compacted())
}

// crash opens a copy of the files as they are, which is what kill -9 leaves.
func (p *player) crash() {
	dir := p.t.TempDir()
	tx, err := p.store.db.Begin(true) // keeps the checkpointer out: a copy takes time
	require.NoError(p.t, err)
	require.NoError(p.t, os.CopyFS(dir, os.DirFS(filepath.Dir(p.path))))
	require.NoError(p.t, tx.Rollback())
	compacted := p.store.Compacted()
	require.NoError(p.t, p.store.Close())
	p.path = filepath.Join(dir, filepath.Base(p.path))
	p.open()
	require.NoError(p.t, p.store.Check())
	require.LessOrEqual(p.t, p.store.Compacted(), compacted)
	p.model.compacted = p.store.Compacted() // a crash may undo a compaction
}

func (p *player) checkpoint() {
	require.NoError(p.t, p.store.Checkpoint(p.t.Context()))
}
