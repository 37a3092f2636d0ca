package payload

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// TestMain runs a scene instead of the tests in a process that a test started.
func TestMain(m *testing.M) {
	if name := os.Getenv(sceneVariable); name != "" {
		os.Exit(runScene(name, os.Getenv(rootVariable)))
	}
	os.Exit(m.Run())
}

// synthetic returns a small archive of the same shape as the real one.
func synthetic(t testing.TB, version string) archive {
	t.Helper()
	a, err := pack(version)
	require.NoError(t, err)
	return a
}

func pack(version string) (archive, error) {
	contents := map[string]string{
		"runc": noise("runc "+version, 500_000),
		"shim": noise("shim "+version, 200_000),
		"init": "#!/bin/sh\necho " + version + "\n",
	}
	var a archive
	var packed bytes.Buffer
	compressor, err := zstd.NewWriter(&packed)
	if err != nil {
		return a, err
	}
	writer := tar.NewWriter(compressor)
	for _, name := range []string{"runc", "shim", "init"} {
		content := contents[name]
		if err := writer.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: programMode}); err != nil {
			return a, err
		}
		if _, err := io.WriteString(writer, content); err != nil {
			return a, err
		}
		a.Files = append(a.Files, file{Name: name, Size: int64(len(content)), SHA256: sum([]byte(content))})
	}
	if err := writer.Close(); err != nil {
		return a, err
	}
	if err := compressor.Close(); err != nil {
		return a, err
	}
	a.Archive = sum(packed.Bytes())
	a.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed.Bytes())), nil }
	return a, nil
}

// noise returns data that does not compress. The same seed gives the same data.
func noise(seed string, size int) string {
	data := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(data)
	return string(data)
}

func sum(data []byte) string {
	hash := sha256.Sum256(data)
	return hex.EncodeToString(hash[:])
}

// requireWhole fails unless dir matches the manifest exactly.
func requireWhole(t testing.TB, a archive, dir string) {
	t.Helper()
	bad, err := a.verify(dir)
	require.NoError(t, err)
	require.Empty(t, bad)
	require.ElementsMatch(t, names(a), list(t, dir))
}

func names(a archive) []string {
	var all []string
	for _, f := range a.Files {
		all = append(all, f.Name)
	}
	return all
}

func list(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	all := []string{}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestUnpackPutsEveryFileInPlaceOnce(t *testing.T) {
	a := synthetic(t, "v1")
	root := filepath.Join(t.TempDir(), "data", "payload")
	dir, err := a.unpack(t.Context(), root)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(root, a.Archive), dir)
	requireWhole(t, a, dir)

	opened := 0
	open := a.open
	a.open = func() (io.ReadCloser, error) { opened++; return open() }
	again, err := a.unpack(t.Context(), root)
	require.NoError(t, err)
	require.Equal(t, dir, again)
	require.Zero(t, opened, "unpacked a second time")
}

func TestDamageIsNoticedAndRepaired(t *testing.T) {
	tests := map[string]func(path string) error{
		"flipped byte": func(path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 1
			return os.WriteFile(path, data, programMode)
		},
		"truncated":     func(path string) error { return os.Truncate(path, 100) },
		"emptied":       func(path string) error { return os.Truncate(path, 0) },
		"longer":        func(path string) error { return os.Truncate(path, 1<<20) },
		"missing":       os.Remove,
		"lost exec bit": func(path string) error { return os.Chmod(path, 0o644) },
		"world-writable": func(path string) error {
			return os.Chmod(path, 0o777)
		},
		"link": func(path string) error {
			if err := os.Rename(path, path+".old"); err != nil {
				return err
			}
			return os.Symlink(path+".old", path)
		},
		"dangling link": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Symlink("/nowhere", path)
		},
		"folder": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.MkdirAll(filepath.Join(path, "in", "it"), 0o755)
		},
		"pipe": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return mkfifo(path)
		},
		"everything missing": func(path string) error { return os.RemoveAll(filepath.Dir(path)) },
		"rubbish beside it": func(path string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), ".runc.partial"), nil, 0o600)
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			a, root := synthetic(t, "v1"), t.TempDir()
			dir, err := a.unpack(t.Context(), root)
			require.NoError(t, err)
			require.NoError(t, damage(filepath.Join(dir, "shim")))
			if name == "rubbish beside it" {
				// Foreign files alone cause no failure. The next repair removes them.
				require.NoError(t, os.Remove(filepath.Join(dir, "init")))
			}
			_, err = a.unpack(t.Context(), root)
			require.NoError(t, err)
			requireWhole(t, a, dir)
		})
	}
}

func TestRepairLeavesGoodFilesAlone(t *testing.T) {
	a, root := synthetic(t, "v1"), t.TempDir()
	dir, err := a.unpack(t.Context(), root)
	require.NoError(t, err)
	before, err := os.Stat(filepath.Join(dir, "runc"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, "init")))

	_, err = a.unpack(t.Context(), root)
	require.NoError(t, err)
	after, err := os.Stat(filepath.Join(dir, "runc"))
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
}

func TestDamagedPayloadIsRefused(t *testing.T) {
	a, root := synthetic(t, "v1"), t.TempDir()
	a.Files[1].SHA256 = sum([]byte("something else"))
	_, err := a.unpack(t.Context(), root)
	require.ErrorContains(t, err, "the payload in this mote file is damaged: shim")
	require.Empty(t, list(t, root))

	whole := synthetic(t, "v1")
	packed, err := whole.open()
	require.NoError(t, err)
	data, err := io.ReadAll(packed)
	require.NoError(t, err)
	whole.open = func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data[:len(data)/2])), nil
	}
	_, err = whole.unpack(t.Context(), root)
	require.ErrorContains(t, err, "cannot unpack programs to "+root)
	require.Empty(t, list(t, root))
}

func TestCancelledUnpackLeavesNothing(t *testing.T) {
	a, root := synthetic(t, "v1"), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.unpack(ctx, root)
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, list(t, root))
}

func TestBuiltWithoutPayload(t *testing.T) {
	_, err := read(embed.FS{}, "files/none")
	require.ErrorIs(t, err, ErrAbsent)
	require.Equal(t, "this mote was built without its payload; build with scripts/build", fmt.Sprint(err))
}
