package bolt

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// TestCopy checks that a copy has all acknowledged data, volatile keys included, whether or not the
// store is small enough to be copied without a change of its file.
func TestCopy(t *testing.T) {
	for name, values := range map[string]int{"small": 5, "large": 2 * smallLayers / 10_000} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s, err := Open(filepath.Join(t.TempDir(), "state.db"), Options{Volatile: []string{"sign/"}})
			require.NoError(t, err)
			defer func() { require.NoError(t, s.Close()) }()
			before, err := s.Stats()
			require.NoError(t, err)
			want := map[string]int64{}
			put := func(key string, size int) {
				res, err := s.Write(ctx, Write{Key: key, Value: make([]byte, size)})
				require.NoError(t, err)
				want[key] = res.Revision
			}
			for round := range 2 {
				for i := range values {
					put(fmt.Sprint(i), 10_000)
				}
				put("sign/of-life", round)
				put("gone", 1)
				_, err = s.Write(ctx, Write{Key: "gone", Delete: true})
				require.NoError(t, err)
				delete(want, "gone")
				require.Equal(t, want, copied(t, s))
			}
			after, err := s.Stats()
			require.NoError(t, err)
			require.Equal(t, name == "small", after.Checkpoints == before.Checkpoints)
		})
	}
}

// TestCopyMissesCheckpoint checks that a file that a checkpoint has changed meanwhile is not
// mistaken for the one that was read before, also when the log was empty.
func TestCopyMissesCheckpoint(t *testing.T) {
	ctx := t.Context()
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), Options{Volatile: []string{"sign/"}})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	put := func() {
		_, err := s.Write(ctx, Write{Key: "sign/of-life"})
		require.NoError(t, err)
		require.NoError(t, s.Checkpoint(ctx))
	}
	put()
	var at checkpointID
	look := func(v *view) error { at = checkpointIDOf(v.meta); return nil }
	require.NoError(t, s.view(look))
	file, err := unnamedFile(t.TempDir())
	require.NoError(t, err)
	defer file.Close()
	same, err := s.copyFile(file, at)
	require.NoError(t, err)
	require.True(t, same)
	sequence := s.wal.Seq()
	put()
	require.Equal(t, sequence, s.wal.Seq())
	same, err = s.copyFile(file, at)
	require.NoError(t, err)
	require.False(t, same)
}

// copied makes a copy, opens it as a store and returns the revisions of its keys.
func copied(t *testing.T, s *Store) map[string]int64 {
	c, err := s.Copy(t.Context())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "state.db")
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = c.WriteTo(f)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, c.Close())
	info, err := rescue.Inspect(path)
	require.NoError(t, err)
	require.Equal(t, s.Revision(), info.Revision)
	require.NoError(t, rescue.Adopt(path, 0))
	again := open(t, path)
	require.Empty(t, again.Repairs())
	list, err := again.Range(t.Context(), Query{Key: "\x00", End: allKeys})
	require.NoError(t, err)
	revisions := map[string]int64{}
	for _, kv := range list.KVs {
		revisions[kv.Key] = kv.Mod
	}
	return revisions
}
