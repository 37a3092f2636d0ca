package bolt

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// The layout of bbolt's meta pages: see format/page.go.
const pageHeaderSize, metaSize = 16, 64

// FuzzImage changes a file at two places and then corrects the checksums of its meta pages, so that
// the pages behind them are read. The examination must end without a panic for any content, and a
// file that is sound must open.
func FuzzImage(f *testing.F) {
	whole, err := os.ReadFile(filepath.Join("testdata", "format4", "state.db"))
	require.NoError(f, err)
	f.Add(uint32(0), []byte{}, uint32(0), []byte{})
	f.Add(uint32(format.PageSize+pageHeaderSize+40), []byte{0xff, 0xff}, uint32(3*format.PageSize+8), []byte{1, 0, 9, 0})
	f.Add(uint32(2*format.PageSize+10), []byte{0xff, 0xff, 0, 0, 0, 0, 1}, uint32(4*format.PageSize+12), []byte{7})
	f.Fuzz(func(t *testing.T, at uint32, one []byte, from uint32, two []byte) {
		b := bytes.Clone(whole)
		copy(b[int(at)%len(b):], one)
		copy(b[int(from)%len(b):], two)
		for n := range 2 {
			header := b[n*format.PageSize+pageHeaderSize:][:metaSize]
			sum := fnv.New64a()
			_, _ = sum.Write(header[:metaSize-8])
			binary.LittleEndian.PutUint64(header[metaSize-8:], sum.Sum64())
		}
		if !sound(t, b) {
			return
		}
		dir := t.TempDir()
		require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "format4"))))
		path := filepath.Join(dir, "state.db")
		require.NoError(t, os.WriteFile(path, b, 0o600))
		if s, err := Open(path, Options{}); err == nil {
			require.NoError(t, s.Check())
			require.NoError(t, s.Close())
		}
	})
}

// sound reports whether a file of the current format is sound. It reads the records of all pages,
// too.
func sound(t *testing.T, file []byte) bool {
	image := format.Image{File: bytes.NewReader(file), Size: int64(len(file))}
	commits, err := image.Commits()
	if err != nil {
		return false
	}
	tree := image.Tree(commits[0])
	for id := range tree.Pages {
		tree.Records(id)
	}
	path := filepath.Join(t.TempDir(), "state.db")
	require.NoError(t, os.WriteFile(path, file, 0o600))
	info, err := rescue.Inspect(path)
	return err == nil && info.Format == format.Version
}
