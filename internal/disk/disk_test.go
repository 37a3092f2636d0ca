package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOf(t *testing.T) {
	dir := t.TempDir()
	here, err := Of(dir)
	require.NoError(t, err)
	require.Equal(t, dir, here.Dir)
	require.NotZero(t, here.Size)
	require.LessOrEqual(t, here.Free, here.Size)

	there, err := Of(filepath.Join(dir, "not", "yet"))
	require.NoError(t, err)
	require.Equal(t, dir, there.Dir)
	require.Equal(t, here.Size, there.Size)

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Of(filepath.Join(file, "below"))
	require.ErrorIs(t, err, unix.ENOTDIR)
	require.ErrorContains(t, err, "look at the disk of "+file+"/below: ")
}
