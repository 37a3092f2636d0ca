package payload

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/dirlock"
)

func mkfifo(path string) error { return unix.Mkfifo(path, 0o755) }

// release ends this process' mark on dir, as the end of a process does.
func release(t *testing.T, dir string) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	require.NoError(t, err)
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == dir {
			fd := 0
			for _, digit := range filepath.Base(link) {
				fd = fd*10 + int(digit-'0')
			}
			require.NoError(t, unix.Close(fd))
		}
	}
}

func TestUnusedVersionsAreRemoved(t *testing.T) {
	root := t.TempDir()
	old, current := synthetic(t, "v1"), synthetic(t, "v2")
	oldDir, err := old.unpack(t.Context(), root)
	require.NoError(t, err)
	foreign := filepath.Join(root, "notes")
	require.NoError(t, os.Mkdir(foreign, 0o755))

	_, err = current.unpack(t.Context(), root)
	require.NoError(t, err)
	require.DirExists(t, oldDir, "still marked as used by a process")

	release(t, oldDir)
	dir, err := current.unpack(t.Context(), root)
	require.NoError(t, err)
	require.NoDirExists(t, oldDir)
	require.DirExists(t, foreign, "not a version's folder")
	requireWhole(t, current, dir)
}

func TestVersionThatAProcessRunsFromIsKept(t *testing.T) {
	root := t.TempDir()
	old, current := synthetic(t, "v1"), synthetic(t, "v2")
	oldDir, err := old.unpack(t.Context(), root)
	require.NoError(t, err)
	release(t, oldDir)
	// A program that waits stands for a shim. It is started through a link, because a data
	// directory may be a link.
	cat, err := exec.LookPath("cat")
	require.NoError(t, err)
	program, err := os.ReadFile(cat)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(oldDir, "cat"), program, 0o755))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(root, link))
	shim := exec.Command(filepath.Join(link, old.Archive, "cat"))
	input, err := shim.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, shim.Start())

	_, err = current.unpack(t.Context(), link)
	require.NoError(t, err)
	require.DirExists(t, oldDir)

	require.NoError(t, input.Close())
	require.NoError(t, shim.Wait())
	_, err = current.unpack(t.Context(), link)
	require.NoError(t, err)
	require.NoDirExists(t, oldDir)
}

func TestWaitingForAnotherEndsWithTheContext(t *testing.T) {
	a, root := synthetic(t, "v1"), t.TempDir()
	unlock, err := dirlock.TryLock(root)
	require.NoError(t, err)
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = a.unpack(ctx, root)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "somebody else has it locked")
}
