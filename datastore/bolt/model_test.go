package bolt

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	modelSeed = flag.Uint64("model.seed", 0, "seed of TestModel; 0 takes one from the clock")
	modelOps  = flag.Int("model.ops", 3000, "operations of TestModel")
)

// model is the store as a list of all that ever happened.
type model struct {
	revision, compacted int64
	events              []Event // one for each revision from firstRevision+1 on
}

func newModel() *model { return &model{revision: firstRevision} }

// at returns the living version of key at revision.
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

func (m *model) list(q Query) []*KV {
	var kvs []*KV
	for i := range modelKeys {
		key := modelKey(i)
		kv := m.at(key, q.Revision)
		if kv == nil || !inRange(key, q.Key, q.End) || (q.Limit > 0 && int64(len(kvs)) == q.Limit) {
			continue
		}
		if q.KeysOnly {
			bare := *kv
			bare.Value = nil
			kv = &bare
		}
		kvs = append(kvs, kv)
	}
	return kvs
}

const modelKeys = 30

func modelKey(i int) string { return fmt.Sprintf("/registry/things/%02d", i) }

// recorder is a sink that notes all it gets, and sometimes refuses, as a slow client would.
type recorder struct {
	rng    *rand.Rand
	events []Event
	ended  chan error
}

func (r *recorder) Offer(events []Event) bool {
	if r.rng.IntN(4) == 0 {
		return false
	}
	r.events = append(r.events, events...)
	return true
}

func (r *recorder) Send(_ context.Context, events []Event) bool {
	r.events = append(r.events, events...)
	return true
}

func (r *recorder) End(err error) { r.ended <- err }

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
	p.store = open(t, p.path)
	steps := []struct {
		weight int
		step   func()
	}{
		{40, p.create}, {40, p.update}, {20, p.remove},
		{20, p.list}, {5, p.watch}, {2, p.compact}, {1, p.reopen},
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

func (p *player) key() string { return modelKey(p.rng.IntN(modelKeys)) }

func (p *player) value() []byte {
	return bytes.Repeat([]byte{byte('a' + p.rng.IntN(26))}, p.rng.IntN(3000))
}

// guard is mostly the key's revision, sometimes another.
func (p *player) guard(kv *KV) int64 {
	if kv == nil || p.rng.IntN(5) == 0 {
		return 1 + p.rng.Int64N(p.model.revision)
	}
	return kv.Mod
}

func (p *player) create() {
	key, value := p.key(), p.value()
	rev, err := p.store.Create(p.t.Context(), key, value, 0)
	if p.model.at(key, p.model.revision) != nil {
		require.ErrorIs(p.t, err, ErrExists)
		require.Equal(p.t, p.model.revision, rev)
		return
	}
	require.NoError(p.t, err)
	require.Equal(p.t, p.model.revision+1, rev)
	p.model.write(Event{KV: &KV{Key: key, Value: value, Create: rev, Mod: rev, Version: 1}})
}

func (p *player) update() {
	key, value := p.key(), p.value()
	old := p.model.at(key, p.model.revision)
	guard := p.guard(old)
	rev, kv, ok, err := p.store.Update(p.t.Context(), key, value, guard, 0)
	require.NoError(p.t, err)
	if old == nil || old.Mod != guard {
		require.False(p.t, ok)
		require.Equal(p.t, p.model.revision, rev)
		require.Equal(p.t, old, kv)
		return
	}
	want := &KV{Key: key, Value: value, Create: old.Create, Mod: p.model.revision + 1, Version: old.Version + 1}
	require.True(p.t, ok)
	require.Equal(p.t, want, kv)
	require.Equal(p.t, want.Mod, rev)
	p.model.write(Event{KV: want, Prev: old})
}

func (p *player) remove() {
	key := p.key()
	old := p.model.at(key, p.model.revision)
	guard := p.guard(old)
	if p.rng.IntN(2) == 0 {
		guard = 0
	}
	rev, kv, ok, err := p.store.Delete(p.t.Context(), key, guard)
	require.NoError(p.t, err)
	require.Equal(p.t, old, kv)
	if old == nil || (guard != 0 && guard != old.Mod) {
		require.False(p.t, ok)
		require.Equal(p.t, p.model.revision, rev)
		return
	}
	require.True(p.t, ok)
	require.Equal(p.t, p.model.revision+1, rev)
	p.model.write(Event{Deleted: true, KV: &KV{Key: key, Mod: rev}, Prev: old})
}

func (p *player) list() {
	q := Query{Key: p.key(), Limit: p.rng.Int64N(5), KeysOnly: p.rng.IntN(4) == 0}
	q.End = []string{"", allKeys, p.key()}[p.rng.IntN(3)]
	if p.rng.IntN(3) > 0 {
		q.Revision = 1 + p.rng.Int64N(p.model.revision+1)
	}
	rev, kvs, err := p.store.Range(p.t.Context(), q)
	_, n, countErr := p.store.Count(p.t.Context(), q)
	require.Equal(p.t, p.model.revision, rev)
	require.Equal(p.t, err, countErr)
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
	want := p.model.list(q)
	require.NoError(p.t, err)
	require.Equal(p.t, want, kvs, "%+v", q)
	require.EqualValues(p.t, len(want), n)
}

// watch follows a range from a past or future revision over a few writes.
func (p *player) watch() {
	from := p.rng.Int64N(p.model.revision + 3)
	key, end := p.key(), []string{"", allKeys, p.key()}[p.rng.IntN(3)]
	r := &recorder{rng: p.rng, ended: make(chan error, 1)}
	ctx, cancel := context.WithCancel(p.t.Context())
	defer cancel()
	first := from
	if from == 0 {
		first = p.model.revision + 1
	}
	err := p.store.Watch(ctx, key, end, from, r)
	if from != 0 && from <= p.model.compacted {
		require.ErrorIs(p.t, err, ErrCompacted)
		return
	}
	require.NoError(p.t, err)
	// The recorder uses the generator too: what the store does from here on must not race with us.
	p.store.WaitDelivered(p.model.revision)
	for range p.rng.IntN(20) {
		p.create()
		p.store.WaitDelivered(p.model.revision)
		p.remove()
		p.store.WaitDelivered(p.model.revision)
	}
	cancel()
	require.NoError(p.t, <-r.ended)
	var want []Event
	for _, e := range p.model.events {
		if e.KV.Mod >= first && inRange(e.KV.Key, key, end) {
			want = append(want, e)
		}
	}
	require.Equal(p.t, want, r.events, "watch of [%s, %q) from %d", key, end, from)
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
	p.store = open(p.t, p.path)
	require.Equal(p.t, p.model.compacted, p.store.Compacted())
}
