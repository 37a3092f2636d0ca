package pki

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/durable"
)

// TestUnchangedFilesAreNotWritten checks that the check of each minute does not write to flash each
// time.
func TestUnchangedFilesAreNotWritten(t *testing.T) {
	dir := t.TempDir()
	file, sub := filepath.Join(dir, "file"), filepath.Join(dir, "dir")
	change := func() {
		require.NoError(t, durable.MakeDir(sub))
		require.NoError(t, durable.UpdateFile(file, []byte("text"), 0o600))
		require.NoError(t, updateCopy(file, []byte("text")))
	}
	inode := func(path string) syscall.Timespec {
		info, err := os.Stat(path)
		require.NoError(t, err)
		return info.Sys().(*syscall.Stat_t).Ctim
	}
	change()
	before := []syscall.Timespec{inode(file), inode(sub)}
	change()
	require.Equal(t, before, []syscall.Timespec{inode(file), inode(sub)})
	require.NoError(t, os.Chmod(file, 0o644))
	change()
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}

// TestCopyToNoFile refuses special files: writing to a pipe would wait for a reader.
func TestCopyToNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	require.ErrorContains(t, updateCopy(pipe, nil), "is no file; set another --write-kubeconfig")
}
