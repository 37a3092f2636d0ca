package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/internal/layout"
)

// The victim is this test's program again, which restores and kills itself before a given step.
const (
	victimDir  = "MOTE_TEST_RESTORE_DIR"
	victimPath = "MOTE_TEST_RESTORE_PATH"
	victimStep = "MOTE_TEST_RESTORE_STEP"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		restoreVictim(dir)
	}
	os.Exit(m.Run())
}

func restoreVictim(dir string) {
	var left int
	if _, err := fmt.Sscan(os.Getenv(victimStep), &left); err != nil {
		os.Exit(3)
	}
	r := newRestoring(dir)
	r.before = func(string) {
		if left--; left < 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	_, _, err := r.resume()
	if path := os.Getenv(victimPath); err == nil && path != "" {
		_, err = r.restore(context.Background(), path, Keys{}, nil)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	os.Exit(0)
}

// TestRestoreKilledAtEveryStep checks that after a kill the data directory is unchanged, or that
// Resume completes the restore; and that the previous data is kept.
func TestRestoreKilledAtEveryStep(t *testing.T) {
	from := newMachine(t)
	store := from.open(t)
	put(t, store, "/a", "saved")
	saved := from.save(t, "", store)
	self, err := os.Executable()
	require.NoError(t, err)

	changed := false
	for step := 0; ; step++ {
		m := newMachine(t)
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, "server", "encryption.yaml"), []byte("other"), 0o600))
		old := m.open(t)
		put(t, old, "/a", "replaced")
		require.NoError(t, old.Close())

		run := func(path string, step int) (string, error) {
			victim := exec.Command(self)
			victim.Env = append(os.Environ(), victimDir+"="+m.dir, victimPath+"="+path, victimStep+"="+fmt.Sprint(step))
			out, err := victim.CombinedOutput()
			return string(out), err
		}
		out, err := run(saved.Path, step)
		if err == nil {
			require.Greater(t, step, 10, "steps")
			break
		}
		require.Equal(t, "signal: killed", err.Error(), "%s", out)

		_, planned := os.Stat(filepath.Join(m.dir, "datastore", planFile))
		if _, err := run("", 1); planned == nil { // the process that resumes is killed, too
			require.Error(t, err)
		}
		done, resumed, err := Resume(m.dir)
		require.NoError(t, err, "step %d", step)
		want, key := "replaced", "other"
		if resumed {
			changed = true
			want, key = "saved", "secretbox"
		}
		if !resumed && changed {
			want, key = "saved", "secretbox" // killed after the plan was removed
		}
		now := m.open(t)
		require.Equal(t, want, get(t, now, "/a"), "step %d", step)
		require.NoError(t, now.Check())
		require.NoError(t, now.Close())
		is, err := os.ReadFile(filepath.Join(m.dir, "server", "encryption.yaml"))
		require.NoError(t, err)
		require.Equal(t, key, string(is), "step %d", step)
		require.NoDirExists(t, filepath.Join(m.dir, "datastore", layout.Stage))
		require.NoDirExists(t, filepath.Join(m.dir, layout.Stage))
		require.NoFileExists(t, filepath.Join(m.dir, "datastore", planFile))
		if resumed {
			aside, err := bolt.Open(filepath.Join(done.Replaced[0], "state.db"), bolt.Options{})
			require.NoError(t, err)
			require.Equal(t, "replaced", get(t, aside, "/a"))
			require.NoError(t, aside.Close())
		}
		_, resumed, err = Resume(m.dir)
		require.NoError(t, err)
		require.False(t, resumed)
	}
	require.True(t, changed)
}

// TestRestoreBeginsAboveARepair checks a snapshot from which one machine repaired its store: a
// restore on another machine, which does not know of that repair, begins at a higher revision.
func TestRestoreBeginsAboveARepair(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	put(t, store, "/a", "saved")
	saved := m.save(t, "", store)
	require.NoError(t, store.Close())
	path := filepath.Join(m.dir, "datastore", "state.db")
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = file.WriteAt(make([]byte, 8192), 0)
	require.NoError(t, errors.Join(err, file.Close()))
	repaired, err := bolt.Open(path, bolt.Options{Restore: func() (io.ReadCloser, string, error) { return Newest(string(m.folder), "") }})
	require.NoError(t, err)
	last := put(t, repaired, "/a", "given out")
	require.NoError(t, repaired.Close())

	other := newMachine(t)
	alone := filepath.Join(t.TempDir(), saved.Name)
	require.NoError(t, os.Link(saved.Path, alone))
	_, err = Restore(t.Context(), alone, other.dir, Keys{}, nil)
	require.NoError(t, err)
	require.Greater(t, put(t, other.open(t), "/a", "later"), last)
}

// TestRestoreOnTwoDisks restores with the store on a disk of its own. It needs root for a file
// system in a mount namespace that dies with the test's thread.
func TestRestoreOnTwoDisks(t *testing.T) {
	runtime.LockOSThread() // and never unlock: the thread must not be used again
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		t.Skip("cannot make a mount namespace: ", err)
	}
	require.NoError(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	m := newMachine(t)
	disk := filepath.Join(m.dir, "datastore")
	require.NoError(t, os.Mkdir(disk, 0o700))
	require.NoError(t, syscall.Mount("mote-test", disk, "tmpfs", 0, "size=100m"))
	defer func() { require.NoError(t, syscall.Unmount(disk, syscall.MNT_DETACH)) }()
	store := m.open(t)
	put(t, store, "/a", "saved")
	saved := m.save(t, "", store)
	put(t, store, "/a", "replaced")
	require.NoError(t, store.Close())
	key := filepath.Join("server", "encryption.yaml")
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, key), []byte("other"), 0o600))

	done, err := Restore(t.Context(), saved.Path, m.dir, Keys{}, nil)
	require.NoError(t, err)
	require.Len(t, done.Replaced, 2)
	for path, want := range map[string]string{filepath.Join(m.dir, key): "secretbox", filepath.Join(done.Replaced[1], key): "other"} {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, want, string(data))
	}
	require.FileExists(t, filepath.Join(done.Replaced[0], "state.db"))
	now := m.open(t)
	require.Equal(t, "saved", get(t, now, "/a"))
	require.NoError(t, now.Close())
}

// TestLogOfARestoreIsMissed checks that emptying the log that a restore creates is detected,
// although nothing has been written to it yet.
func TestLogOfARestoreIsMissed(t *testing.T) {
	m := newMachine(t)
	store := m.open(t)
	put(t, store, "/a", "saved")
	saved := m.save(t, "", store)
	require.NoError(t, store.Close())
	_, err := Restore(t.Context(), saved.Path, m.dir, Keys{}, nil)
	require.NoError(t, err)
	path := filepath.Join(m.dir, "datastore", "state.db")
	require.NoError(t, rescue.Examine(path))
	for _, name := range []string{"state.wal.0", "state.wal.1"} {
		require.NoError(t, os.Truncate(filepath.Join(m.dir, "datastore", name), 0))
	}
	require.ErrorContains(t, rescue.Examine(path), "damaged write-ahead log")
	repaired := m.open(t)
	require.Equal(t, "saved", get(t, repaired, "/a"))
	require.Contains(t, repaired.Repairs()[0].What, "set the log aside")
}
