package rescue_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/format"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, path string) *bolt.Store {
	t.Helper()
	s, err := bolt.Open(path, bolt.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// create writes a new key, as the apiserver does.
func create(t *testing.T, s *bolt.Store, key string, value []byte) {
	t.Helper()
	res, err := s.Write(t.Context(), bolt.Write{Key: key, Value: value, Guard: &bolt.Guard{}})
	require.NoError(t, err)
	require.True(t, res.OK)
}

func count(t *testing.T, s *bolt.Store, key, end string) int64 {
	t.Helper()
	list, err := s.Range(t.Context(), bolt.Query{Key: key, End: end, CountOnly: true})
	require.NoError(t, err)
	return list.Count
}

// fill makes a store with n keys of 3 kB in its file, and returns its path.
func fill(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := bolt.Open(path, bolt.Options{})
	require.NoError(t, err)
	for i := range n {
		create(t, s, fmt.Sprintf("/key/%03d", i), make([]byte, 3000))
	}
	for range 3 { // so the log is not needed any more
		_, err := s.Write(t.Context(), bolt.Write{Key: "/last"})
		require.NoError(t, err)
		require.NoError(t, s.Checkpoint(t.Context()))
	}
	require.NoError(t, s.Close())
	return path
}

// logNames returns the paths of the two files of a store's log.
func logNames(path string) [2]string {
	prefix := strings.TrimSuffix(path, ".db") + ".wal"
	return [2]string{prefix + ".0", prefix + ".1"}
}

// imageOf returns the file of a store, to be read page by page, and its commits.
func imageOf(t *testing.T, path string) (format.Image, []format.Commit) {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	require.NoError(t, err)
	image := format.Image{File: file, Size: info.Size()}
	commits, err := image.Commits()
	require.NoError(t, err)
	return image, commits
}

// bucketOf returns the value of a bucket.
func bucketOf(t *testing.T, tree *format.Tree, name string) (value []byte) {
	t.Helper()
	tree.Walk(tree.Root, func(e format.Element) {
		if string(e.Key) == name {
			value = e.Value
		}
	}, func(err error) { require.NoError(t, err) })
	return value
}

// pageOf returns the offset in the file of the record of a revision.
func pageOf(t *testing.T, path string, revision int64) int64 {
	t.Helper()
	image, commits := imageOf(t, path)
	tree := image.Tree(commits[0])
	log := bucketOf(t, tree, format.LogBucket)
	tree.WalkBucket(log, func(format.Element) {}, func(err error) { require.NoError(t, err) })
	for id := range tree.Pages {
		for _, rec := range tree.Records(id) {
			if rec.Mod == revision && tree.Visited(id) {
				return int64(id) * format.PageSize
			}
		}
	}
	require.Fail(t, "no record", "%d", revision)
	return 0
}
