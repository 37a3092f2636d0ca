package rescue_test

import (
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// badSector is a file that cannot be read at the offset bad.
type badSector struct {
	io.ReaderAt
	bad int64
}

func (f badSector) ReadAt(b []byte, at int64) (int, error) {
	if at <= f.bad && f.bad < at+int64(len(b)) {
		return 0, &fs.PathError{Op: "read", Path: "state.db", Err: syscall.EIO}
	}
	return f.ReaderAt.ReadAt(b, at)
}

// TestUnreadablePageIsNoDamage checks that a page that cannot be read is not damage: the next read
// may succeed.
func TestUnreadablePageIsNoDamage(t *testing.T) {
	path := fill(t, 100)
	image, commits := imageOf(t, path)
	image.File = badSector{image.File, pageOf(t, path, 50)}
	require.ErrorIs(t, rescue.Unreadable(image, commits[0]), syscall.EIO)
}

// TestClockGoesBack checks that the names of files that are set aside do not collide, and that
// leases keep their time; see TestLeaseAfterClockJump.
func TestClockGoesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	names := map[string]bool{}
	for range 3 {
		require.NoError(t, os.WriteFile(path, []byte{byte(rand.Int())}, 0o600))
		aside, err := rescue.SetAside(path, "20010101T000000Z")
		require.NoError(t, err)
		require.False(t, names[aside])
		names[aside] = true
		require.NoError(t, os.Remove(path))
	}
}
