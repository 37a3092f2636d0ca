package format

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

// TestCounters checks that counters are read as they were written, and that each kind of error is
// identified.
func TestCounters(t *testing.T) {
	want := Counters{
		Format: Version, Revision: 9, Compacted: 7, Scrubbed: 6, Ceiling: 100, LogSequence: 3, LogMarked: 1,
	}
	db, err := CreateDB(filepath.Join(t.TempDir(), "state.db"))
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	key, row := []byte("key"), Header{Mod: 9}.Encode()
	require.NoError(t, Update(db, func(tx *Tx) error {
		tx.Counters = want
		return tx.Keys.Put(key, row)
	}))
	want.KeysSum = EntrySum(key, row)

	entries := map[string][]byte{}
	require.NoError(t, db.View(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte(MetaBucket))
		require.Equal(t, want, CountersOf(meta))
		require.EqualValues(t, 9, LastRevision(meta))
		return meta.ForEach(func(k, v []byte) error {
			entries[string(k)] = append([]byte{}, v...)
			return nil
		})
	}))
	got, err := ParseCounters(entries)
	require.NoError(t, err)
	require.Equal(t, want, got)

	for name, c := range map[string]struct {
		change func(map[string][]byte)
		want   error
	}{
		"none":              {func(m map[string][]byte) { clear(m) }, ErrNotStore},
		"a bit flipped":     {func(m map[string][]byte) { m[nameRevision][7] ^= 1 }, ErrDamaged},
		"one missing":       {func(m map[string][]byte) { delete(m, nameCeiling) }, ErrDamaged},
		"the sum missing":   {func(m map[string][]byte) { delete(m, nameSum) }, ErrDamaged},
		"the format's bits": {func(m map[string][]byte) { m[nameFormat][7] ^= 1 }, ErrDamaged},
		"a later version": {func(m map[string][]byte) {
			m[nameFormat] = RevisionKey(Version + 1)
			m["new"] = RevisionKey(1)
		}, ErrOtherVersion},
	} {
		t.Run(name, func(t *testing.T) {
			changed := map[string][]byte{}
			for k, v := range maps.All(entries) {
				changed[k] = append([]byte{}, v...)
			}
			c.change(changed)
			_, err := ParseCounters(changed)
			require.ErrorIs(t, err, c.want)
		})
	}
	require.NoError(t, Update(db, func(tx *Tx) error { return tx.Keys.Delete(key) }))
	require.NoError(t, db.View(func(tx *bbolt.Tx) error {
		require.Zero(t, CountersOf(tx.Bucket([]byte(MetaBucket))).KeysSum)
		return nil
	}))
}
