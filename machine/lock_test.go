package machine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/layout"
)

func TestLockIsHeldOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	pid, err := holderOf(dir)
	require.NoError(t, err)
	require.Zero(t, pid)

	lock, err := lockDataDir(dir)
	require.NoError(t, err)
	pid, err = holderOf(dir)
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), pid)
	_, err = lockDataDir(dir)
	require.ErrorContains(t, err, "is in use by mote (pid ")

	require.NoError(t, lock.Close())
	pid, err = holderOf(dir)
	require.NoError(t, err)
	require.Zero(t, pid, "the file stays, the lock does not")
	lock, err = lockDataDir(dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())
}

// TestHolderThatWasKilled kills a holder: its process ID no longer belongs to any process, and its
// lock ends a moment later.
func TestHolderThatWasKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := lockDataDir(dir)
	require.NoError(t, err)
	ended := exec.Command("true")
	require.NoError(t, ended.Run())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lock"), fmt.Appendln(nil, ended.Process.Pid), 0o600))
	released := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { released <- lock.Close() })
	pid, err := holderOf(dir)
	require.NoError(t, err)
	require.Zero(t, pid)
	require.NoError(t, <-released)
}

func TestLockLeavesNoTraceWhenTheStartFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := lockDataDir(dir)
	require.NoError(t, err)
	require.True(t, lock.undo())
	require.NoDirExists(t, dir)

	// A directory that existed before stays, and so does a lock beside another file.
	require.NoError(t, os.Mkdir(dir, 0o700))
	lock, err = lockDataDir(dir)
	require.NoError(t, err)
	require.True(t, lock.undo())
	require.DirExists(t, dir)
	require.NoFileExists(t, filepath.Join(dir, "lock"))
	lock, err = lockDataDir(dir)
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "server"), 0o700))
	require.False(t, lock.undo())
	require.FileExists(t, filepath.Join(dir, "lock"))
}

func TestResetRemovesOnlyWhatIsOurs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	data := layout.Data(dir)
	for _, name := range []string{
		"server/tls/a.key", "datastore/state.db", ".kubeconfig.tmp-1", "lock", "reset.json", "mine/notes.txt", "audit/audit.log",
		// Left by a restore that was killed while it unpacked, and by one that replaced a cluster.
		"restore.new/server/tls/client-ca.key", "replaced-20261130T120000Z/server/encryption.yaml", "replaced-20261130T120000Z-2/a.key",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	require.NoError(t, removeOurs(dir, layout.OwnsData, data.ResetPlan(), data.Lock()))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "mine", entries[0].Name())

	require.NoError(t, os.RemoveAll(filepath.Join(dir, "mine")))
	require.NoError(t, removeOurs(dir, layout.OwnsData))
	require.NoDirExists(t, dir)
	require.NoError(t, removeOurs(dir, layout.OwnsData), "again")
}
