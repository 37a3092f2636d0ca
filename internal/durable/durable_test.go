package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/durable"
)

// TestWriteFile checks that the file of a crash is reused, and that a failure leaves the old file
// and nothing else.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(path, []byte("a longer old one"), 0o644))
	require.NoError(t, os.WriteFile(durable.Temporary(path), []byte("half of something that was longer"), 0o644))
	require.NoError(t, durable.WriteFile(path, []byte("new"), 0o600))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "new", string(data))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())

	taken := filepath.Join(dir, "folder")
	require.NoError(t, os.Mkdir(taken, 0o700))
	require.ErrorContains(t, durable.WriteFile(taken, []byte("new"), 0o600), "write "+taken)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2)
}
