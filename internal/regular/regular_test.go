package regular_test

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/regular"
)

const limit = 1 << 10

// TestWhatIsNoRegularFileIsRefusedAtOnce refuses, among others, a FIFO and /dev/zero: a plain open
// of the FIFO would wait for a writer forever, and a read of /dev/zero has no end.
func TestWhatIsNoRegularFileIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo.yaml")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	socket := filepath.Join(dir, "socket.yaml")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer listener.Close()
	link := filepath.Join(dir, "link.yaml")
	require.NoError(t, os.Symlink(fifo, link))
	zero := filepath.Join(dir, "zero.yaml")
	require.NoError(t, os.Symlink("/dev/zero", zero))
	for path, want := range map[string]string{
		fifo: "a named pipe", link: "a named pipe", socket: "a socket", zero: "a device", dir: "a directory",
	} {
		_, err := regular.ReadFile(path, limit)
		require.ErrorIs(t, err, regular.ErrNotRegular, path)
		require.EqualError(t, err, "open "+path+": not a regular file but "+want)
	}
}

func TestSizesAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, make([]byte, limit), 0o600))
	data, err := regular.ReadFile(path, limit)
	require.NoError(t, err)
	require.Len(t, data, limit)

	require.NoError(t, os.Truncate(path, 1<<40)) // takes no blocks, and yet a reader would get a terabyte
	_, err = regular.ReadFile(path, limit)
	require.ErrorIs(t, err, regular.ErrTooLarge)
	require.ErrorContains(t, err, path)

	// Files of /proc have size 0.
	data, err = regular.ReadFile("/proc/self/limits", 1<<20)
	require.NoError(t, err)
	require.NotEmpty(t, data)
	_, err = regular.ReadFile("/proc/self/limits", 10)
	require.ErrorIs(t, err, regular.ErrTooLarge)
}

func TestMissingFilesAndLinks(t *testing.T) {
	dir := t.TempDir()
	_, err := regular.ReadFile(filepath.Join(dir, "gone"), limit)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600))
	require.NoError(t, os.Symlink("file", filepath.Join(dir, "link")))
	data, err := regular.ReadFile(filepath.Join(dir, "link"), limit)
	require.NoError(t, err)
	require.Equal(t, "text", string(data))
}
