package snapshot

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLinks checks that links of operators are followed, and that a link to nothing does not make
// the snapshot fail.
func TestLinks(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	elsewhere := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(elsewhere, []byte("elsewhere"), 0o600))
	for name, to := range map[string]string{"linked.key": elsewhere, "dangling": elsewhere + ".gone", "circle": "circle", "folder": t.TempDir()} {
		require.NoError(t, os.Symlink(to, filepath.Join(m.dir, "server", name)))
	}
	saved := m.save(t, "", store)
	other := newMachine(t)
	_, err := Restore(t.Context(), saved.Path, other.dir, Keys{}, nil)
	require.NoError(t, err)
	restored := filepath.Join(other.dir, "server")
	info, err := os.Lstat(filepath.Join(restored, "linked.key"))
	require.NoError(t, err)
	require.True(t, info.Mode().IsRegular())
	for _, name := range []string{"dangling", "circle", "folder"} {
		_, err := os.Lstat(filepath.Join(restored, name))
		require.ErrorIs(t, err, os.ErrNotExist, name)
	}
}

// intruded is a context that calls intrude when Err is called, which Save does right after it has
// taken the directory's lock.
type intruded struct {
	context.Context
	intrude func()
}

func (c intruded) Err() error {
	c.intrude()
	return c.Context.Err()
}

// TestNameIsJudgedUnderTheLock checks that Save does not overwrite a file that takes the name after
// Save was called and before it has the lock.
func TestNameIsJudgedUnderTheLock(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	path := m.folder.path("mine" + Extension)
	ctx := intruded{t.Context(), sync.OnceFunc(func() {
		require.NoError(t, os.WriteFile(path, []byte("somebody's"), 0o600))
	})}
	_, err := m.folder.Save(ctx, "mine", fromStore(store), m.origin(), nil)
	require.ErrorContains(t, err, "there is a mine.tar.zst already")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "somebody's", string(data))
}
