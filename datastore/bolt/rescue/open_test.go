package rescue_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

func TestOpenErrorsSayWhatToDo(t *testing.T) {
	foreign := func(t *testing.T, path string) {
		require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("not a database ", 1000)), 0o600))
	}
	cases := map[string]struct {
		prepare func(t *testing.T, path string)
		want    string
	}{
		"locked":       {func(t *testing.T, path string) { open(t, path) }, "another process has it open; stop the other mote"},
		"foreign file": {foreign, "not a mote datastore"},
		"directory":    {func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) }, "not a mote datastore"},
		"other bbolt file": {func(t *testing.T, path string) {
			db, err := bbolt.Open(path, 0o600, nil)
			require.NoError(t, err)
			require.NoError(t, db.Close())
		}, "not a mote datastore"},
		"cut off": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			require.NoError(t, os.Truncate(path, 2*format.PageSize))
		}, "not a mote datastore, or a damaged one"},
		"zeroed": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			info, err := os.Stat(path)
			require.NoError(t, err)
			require.NoError(t, os.Truncate(path, 2*format.PageSize))
			require.NoError(t, os.Truncate(path, info.Size()))
		}, "not a mote datastore, or a damaged one"},
		"log is gone": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			require.NoError(t, os.Remove(logNames(path)[0]))
		}, "put the log back or restore a snapshot"},
		"log of another": {func(t *testing.T, path string) {
			s := open(t, path)
			create(t, s, "a", nil)
			require.NoError(t, s.Close())
			require.NoError(t, os.Remove(path))
		}, "put it back, restore a snapshot"},
		"newer format": {func(t *testing.T, path string) {
			require.NoError(t, open(t, path).Close())
			db, err := bbolt.Open(path, 0o600, nil)
			require.NoError(t, err)
			require.NoError(t, format.Update(db, func(tx *format.Tx) error { tx.Format++; return nil }))
			require.NoError(t, db.Close())
		}, "written by another version of mote"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			c.prepare(t, path)
			_, err := bolt.Open(path, bolt.Options{})
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, path)
		})
	}
}

// TestOpenAfterInterruptedFirstStart opens the files that a power cut may leave of the very first
// start.
func TestOpenAfterInterruptedFirstStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "datastore", "state.db")
	require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
	require.NoError(t, os.WriteFile(path+".new", make([]byte, 3*format.PageSize), 0o600))
	s := open(t, path)
	require.EqualValues(t, format.FirstRevision, s.Revision())
	require.NoFileExists(t, path+".new")
}

// TestFirstStartInterrupted checks that a log that has grown and has no frame yet is not taken for
// another store's, and is created again.
func TestFirstStartInterrupted(t *testing.T) {
	for _, grown := range []int64{0, 1, 4 << 10, 256 << 10} {
		path := filepath.Join(t.TempDir(), "state.db")
		for i, name := range logNames(path) {
			require.NoError(t, os.WriteFile(name, make([]byte, grown*int64(i)), 0o600))
		}
		s, err := bolt.Open(path, bolt.Options{})
		require.NoError(t, err, "%d bytes", grown)
		create(t, s, "/key", nil)
		require.Empty(t, s.Repairs())
		require.NoError(t, s.Close())
	}
	path := filepath.Join(t.TempDir(), "state.db")
	log := make([]byte, 256<<10)
	log[9] = 1
	for _, name := range logNames(path) {
		require.NoError(t, os.WriteFile(name, log, 0o600))
	}
	_, err := bolt.Open(path, bolt.Options{})
	require.ErrorIs(t, err, rescue.ErrOrphanLog)
}
