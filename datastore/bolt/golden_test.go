package bolt

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

var updateGolden = flag.Bool("golden.update", false, "write testdata anew; a new format gets a folder of its own")

// goldenFiles returns the files of a store that was killed: part of its data is in the file, part
// only in the log.
func goldenFiles() []string { return []string{"state.db", "state.wal.0", "state.wal.1"} }

// TestGolden opens stores that other builds wrote, in this format and in earlier ones. Every later
// format must open them too, or say how to convert them.
func TestGolden(t *testing.T) {
	if *updateGolden {
		writeGolden(t, filepath.Join("testdata", fmt.Sprintf("format%d", format.Version)))
	}
	for version := format.VersionUnsummed; version <= format.Version; version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) { testGolden(t, filepath.Join("testdata", fmt.Sprintf("format%d", version))) })
	}
}

func testGolden(t *testing.T, golden string) {
	dir := t.TempDir()
	for _, name := range goldenFiles() {
		b, err := os.ReadFile(filepath.Join(golden, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	s := open(t, filepath.Join(dir, "state.db"))
	require.NoError(t, s.Check())
	require.Empty(t, s.Repairs())
	require.EqualValues(t, 10, s.Revision())
	list, err := s.Range(t.Context(), Query{Key: "/", End: "0"})
	require.NoError(t, err)
	var got []string
	for _, kv := range list.KVs {
		got = append(got, fmt.Sprintf("%s=%s mod %d create %d version %d lease %d", kv.Key, kv.Value, kv.Mod, kv.Create, kv.Version, kv.Lease))
	}
	require.Equal(t, []string{
		"/a=changed in the file mod 4 create 2 version 2 lease 0",
		"/b=changed in the log mod 7 create 3 version 2 lease 0",
		"/new=in the log mod 8 create 8 version 1 lease 0",
	}, got)
	list, err = s.Range(t.Context(), Query{Key: "/", End: "0", Revision: 6})
	require.NoError(t, err)
	require.EqualValues(t, 4, list.Count)
	require.Equal(t, []int64{77}, s.Leases())
}

func writeGolden(t *testing.T, dir string) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	put := func(key, value string, lease int64) {
		_, err := s.Write(t.Context(), Write{Key: key, Value: []byte(value), Lease: lease})
		require.NoError(t, err)
	}
	// A lease of a hundred years does not end while it waits in a repository.
	_, err = s.Grant(t.Context(), 77, 100*365*24*3600)
	require.NoError(t, err)
	put("/a", "first", 0)
	put("/b", "first", 0)
	put("/a", "changed in the file", 0)
	put("/gone", "with a lease", 77)
	put("/gone too", "without", 0)
	require.NoError(t, s.Checkpoint(t.Context()))
	put("/b", "changed in the log", 0)
	put("/new", "in the log", 0)
	_, err = s.remove(t.Context(), "/gone")
	require.NoError(t, err)
	_, err = s.remove(t.Context(), "/gone too")
	require.NoError(t, err)

	require.NoError(t, os.MkdirAll(dir, 0o755))
	size := 0
	require.NoError(t, s.db.View(func(tx *bbolt.Tx) error { size = int(tx.Size()); return nil }))
	for _, name := range goldenFiles() {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		require.NoError(t, err)
		if strings.HasSuffix(name, ".db") {
			b = b[:size] // the rest is a hole
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	require.NoError(t, s.Close())
}
