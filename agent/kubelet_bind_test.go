package agent

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMountsOfTheKubeletsDirectory(t *testing.T) {
	const dir = "/var/lib/kubelet"
	for _, test := range []struct {
		name          string
		mounts        string
		shared, bound bool
	}{
		{name: "private root", mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw`},
		{name: "shared root", mounts: `27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw`, shared: true},
		{name: "slave root", mounts: `27 1 254:0 / / rw master:1 - ext4 /dev/vda rw`},
		{
			name: "bound by the kubelet", shared: true, bound: true,
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:0 /var/lib/kubelet /var/lib/kubelet rw shared:1 - ext4 /dev/vda rw`,
		}, {
			name: "a disk of the operator's",
			mounts: `27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
42 27 254:16 / /var/lib/kubelet rw - ext4 /dev/vdb rw`,
		}, {
			name: "bound by the kubelet, on a disk of the operator's", shared: true, bound: true,
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:16 / /var/lib/kubelet rw - ext4 /dev/vdb rw
43 42 254:16 / /var/lib/kubelet rw shared:1 - ext4 /dev/vdb rw`,
		}, {
			name: "another directory, bound by the operator",
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:0 /srv/kubelet /var/lib/kubelet rw - ext4 /dev/vda rw`,
		}, {
			name: "listed before what it is mounted on", shared: true, bound: true,
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
43 42 254:0 /var/lib/kubelet /var/lib/kubelet rw shared:1 - ext4 /dev/vda rw
42 27 254:0 /var/lib/kubelet /var/lib/kubelet rw shared:1 - ext4 /dev/vda rw`,
		}, {
			name: "bound by the kubelet, in a subvolume", shared: true, bound: true,
			mounts: `27 1 0:30 /@ / rw - btrfs /dev/vda rw
42 27 0:30 /@/var/lib/kubelet /var/lib/kubelet rw shared:1 - btrfs /dev/vda rw`,
		}, {
			name: "a neighbour is shared",
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:16 / /var/lib/kube rw shared:1 - ext4 /dev/vdb rw`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(test.mounts), nil)
			require.NoError(t, err)
			require.Equal(t, test.shared, onShared(mounts, dir), "shared")
			require.Equal(t, test.bound, boundOnItself(mounts, dir), "bound")
		})
	}
}

// privateMounts gives the test mounts of its own. None of them is shared.
func privateMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlock: the thread must not be used again
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skip("cannot make a mount namespace: ", err)
	}
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// nodeBelow returns the configuration of a node whose directories are below dir.
func nodeBelow(t *testing.T, dir string) Config {
	t.Helper()
	c := testConfig("/p")
	c.DataDir, c.KubeletDir, c.RunDir = filepath.Join(dir, "data"), filepath.Join(dir, "kubelet"), filepath.Join(dir, "run")
	require.NoError(t, os.MkdirAll(c.data().Agent(), 0o700))
	return c
}

// bind mounts from on dir until the test ends.
func bind(t *testing.T, from, dir string, propagation uintptr) {
	t.Helper()
	require.NoError(t, unix.Mount(from, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // the test may have unmounted it
	require.NoError(t, unix.Mount("", dir, "", propagation, ""))
}

// TestKubeletBindsAreRemoved checks that mote removes the kubelet's binds and never the operator's
// mounts: there are none, there is one below mote's, or there is one that was made after mote's was
// removed.
func TestKubeletBindsAreRemoved(t *testing.T) {
	privateMounts(t)
	for name, test := range map[string]struct {
		operators, kubelets int
		link                bool
	}{
		"one":                              {kubelets: 1},
		"none, killed before":              {},
		"two, killed between":              {kubelets: 2},
		"on the operator's":                {operators: 1, kubelets: 1},
		"the operator's, killed before":    {operators: 1},
		"by a link":                        {kubelets: 2, link: true},
		"by a link, on the operator's two": {operators: 2, kubelets: 1, link: true},
	} {
		c := nodeBelow(t, t.TempDir())
		dir := c.KubeletDir
		if test.link {
			dir = filepath.Join(t.TempDir(), "disk")
			require.NoError(t, os.Symlink(dir, c.KubeletDir))
		}
		require.NoError(t, os.MkdirAll(dir, 0o700))
		for range test.operators {
			bind(t, dir, dir, unix.MS_PRIVATE)
		}
		require.NoError(t, recordKubeletBind(c), name)
		for range test.kubelets {
			bind(t, dir, dir, unix.MS_SHARED)
			require.NoError(t, recordKubeletBind(c), name) // a later start
		}
		number := func() int {
			mounts, err := readMounts()
			require.NoError(t, err)
			return len(mountsOn(mounts, dir))
		}
		require.Equal(t, test.operators+test.kubelets, number(), name)
		for range 2 {
			require.NoError(t, removeKubeletBinds(c), name)
			require.Equal(t, test.operators, number(), name)
		}
		bind(t, dir, dir, unix.MS_SHARED) // the operator's mount, now that mote's is gone
		require.NoError(t, removeKubeletBinds(c), name)
		require.Equal(t, test.operators+1, number(), name)
	}
}

// TestRemoveTreesStopsAtMounts checks that the content of mounts below the directory survives, by
// whatever path the directory is named.
func TestRemoveTreesStopsAtMounts(t *testing.T) {
	privateMounts(t)
	dir := t.TempDir()
	precious := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(precious, nil, 0o600))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	for _, path := range []string{dir, link} {
		volume := filepath.Join(dir, "pods", "volume")
		require.NoError(t, os.MkdirAll(volume, 0o700))
		bind(t, filepath.Dir(precious), volume, unix.MS_PRIVATE)
		require.FileExists(t, filepath.Join(volume, "precious"))
		require.NoError(t, removeTrees(filepath.Join(path, "pods")))
		require.NoDirExists(t, filepath.Join(dir, "pods"))
		require.FileExists(t, precious)
	}

	// A link to elsewhere is removed. A mount in the directory that it leads to stays.
	elsewhere := t.TempDir()
	volume := filepath.Join(elsewhere, "volume")
	require.NoError(t, os.Mkdir(volume, 0o700))
	bind(t, filepath.Dir(precious), volume, unix.MS_PRIVATE)
	require.NoError(t, os.Symlink(elsewhere, filepath.Join(dir, "plugin")))
	require.NoError(t, removeTrees(filepath.Join(dir, "plugin")))
	require.FileExists(t, filepath.Join(volume, "precious"))
}
