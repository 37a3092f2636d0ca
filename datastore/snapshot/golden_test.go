package snapshot

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

var updateGolden = flag.Bool("golden.update", false, "write testdata anew; a new format gets a file of its own")

// TestGolden restores the files that earlier versions wrote.
func TestGolden(t *testing.T) {
	newest := filepath.Join("testdata", fmt.Sprintf("format%d%s", Format, Extension))
	if *updateGolden {
		m := newMachine(t)
		store := m.open(t)
		put(t, store, "/a", "first")
		put(t, store, "/a", "second")
		saved := m.save(t, "", store)
		data, err := os.ReadFile(saved.Path)
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(newest, data, 0o644))
	}
	files, err := filepath.Glob(filepath.Join("testdata", "*"+Extension))
	require.NoError(t, err)
	require.Contains(t, files, newest)
	for _, path := range files {
		to := t.TempDir()
		done, err := Restore(t.Context(), path, to, Keys{}, nil)
		require.NoError(t, err, path)
		require.EqualValues(t, 3, done.Revision)
		require.Equal(t, "n1", done.Node)
		require.Equal(t, "second", get(t, machine{dir: to}.open(t), "/a"))
		key, err := os.ReadFile(filepath.Join(to, "server", "tls", "service-account.key"))
		require.NoError(t, err)
		require.Equal(t, "tokens' key", string(key))
	}
}
