package pack

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// program returns a program that is large enough for several blocks.
func program(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, 3<<20)
	for i := range out {
		out[i] = byte(r.IntN(16))
	}
	return out
}

func compress(t *testing.T, data []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	return e.EncodeAll(data, nil)
}

func packed(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, Write(&b, strings.NewReader("launcher"), bytes.NewReader(data), compress(t, data)))
	return b.Bytes()
}

func open(t *testing.T, file []byte) *Program {
	t.Helper()
	p, err := Open(bytes.NewReader(file), int64(len(file)))
	require.NoError(t, err)
	return p
}

func TestPlaceUnpacksOnceAndAgainWhenCut(t *testing.T) {
	want := program(1)
	p := open(t, packed(t, want))
	root := t.TempDir()
	path, err := p.Place(root, "mote")
	require.NoError(t, err)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	before, err := os.Stat(path)
	require.NoError(t, err)

	_, err = p.Place(root, "mote")
	require.NoError(t, err)
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "it is not written twice")

	require.NoError(t, os.Truncate(path, 100))
	// A kill while unpacking has left this file behind.
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(path), ".unpacking"), make([]byte, 2*len(want)), 0o700))
	_, err = p.Place(root, "mote")
	require.NoError(t, err)
	got, err = os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(filepath.Dir(path), ".lock"), path}, left)
}

func TestPlaceRemovesOtherVersions(t *testing.T) {
	root := t.TempDir()
	old, err := open(t, packed(t, program(1))).Place(root, "mote")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "stranger"), nil, 0o600))
	_, err = open(t, packed(t, program(2))).Place(root, "mote")
	require.NoError(t, err)
	require.NoFileExists(t, old)
	require.FileExists(t, filepath.Join(root, "stranger"))
}

func TestRemoveTakesOnlyWhatPlaceMade(t *testing.T) {
	root := filepath.Join(t.TempDir(), "cache")
	path, err := open(t, packed(t, program(1))).Place(root, "mote")
	require.NoError(t, err)
	require.NoError(t, Remove(path))
	require.NoDirExists(t, root)

	installed := filepath.Join(t.TempDir(), "bin", "mote")
	require.NoError(t, os.MkdirAll(filepath.Dir(installed), 0o755))
	require.NoError(t, os.WriteFile(installed, nil, 0o755))
	require.NoError(t, Remove(installed))
	require.FileExists(t, installed)
}

func TestPlaceBySeveralAtOnce(t *testing.T) {
	want := program(3)
	file := packed(t, want)
	root := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		p := open(t, file)
		wg.Go(func() {
			path, err := p.Place(root, "mote")
			if err != nil {
				t.Error(err)
				return
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(want, got) {
				t.Errorf("a process saw an unfinished program: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestDamageIsRefused(t *testing.T) {
	file := packed(t, program(4))
	damaged := bytes.Clone(file)
	damaged[len(file)/2] ^= 1
	root := t.TempDir()
	_, err := open(t, damaged).Place(root, "mote")
	require.Error(t, err)
	left, err := filepath.Glob(filepath.Join(root, "*", "*"))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing half made")
	require.Equal(t, ".lock", filepath.Base(left[0]))

	cut := file[:len(file)-1]
	_, err = Open(bytes.NewReader(cut), int64(len(cut)))
	require.ErrorIs(t, err, ErrPlain)
	senseless := bytes.Clone(file)
	senseless[len(file)-footerSize+8] = 0x7f
	_, err = Open(bytes.NewReader(senseless), int64(len(file)))
	require.ErrorContains(t, err, "copy it again")
}

func TestWriteChecksTheFrame(t *testing.T) {
	err := Write(&bytes.Buffer{}, strings.NewReader("l"), strings.NewReader("one"), compress(t, []byte("two")))
	require.ErrorContains(t, err, "does not hold the program")
}
