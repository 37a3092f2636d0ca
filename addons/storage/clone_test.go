package storage

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// cloneOf returns options of a claim that is a copy of claim "src".
func cloneOf(size string) controller.ProvisionOptions {
	o := options("copy", size)
	o.PVName = "pvc-2"
	o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "src"}
	o.PVC.Spec.DataSourceRef = &corev1.TypedObjectReference{Kind: "PersistentVolumeClaim", Name: "src"}
	return o
}

// newSource provisions and binds claim "src" of 1Ki. It returns the volume's directory.
func newSource(t *testing.T, p *Provisioner) (string, *corev1.PersistentVolume) {
	t.Helper()
	o := options("src", "1Ki")
	volume, _, err := p.Provision(t.Context(), o)
	require.NoError(t, err)
	volume.Annotations = map[string]string{annProvisionedBy: provisioner} // set by the library
	_, err = p.kube.CoreV1().PersistentVolumes().Create(t.Context(), volume, metav1.CreateOptions{})
	require.NoError(t, err)
	o.PVC.Spec.VolumeName, o.PVC.Status.Phase = volume.Name, corev1.ClaimBound
	_, err = p.kube.CoreV1().PersistentVolumeClaims("ns").Create(t.Context(), o.PVC, metav1.CreateOptions{})
	require.NoError(t, err)
	return volume.Spec.Local.Path, volume
}

// TestClone copies all kinds of files with all metadata that the kernel stores for them.
func TestClone(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p := newProvisioner(t)
	src, _ := newSource(t, p)
	in := func(name string) string { return filepath.Join(src, name) }
	require.NoError(t, os.MkdirAll(in("dir/not\xffUTF-8"), 0o750))
	require.NoError(t, os.WriteFile(in("dir/not\xffUTF-8/a \\ b"), []byte("text"), 0o640))
	require.NoError(t, os.Link(in("dir/not\xffUTF-8/a \\ b"), in("hard")))
	require.NoError(t, os.Chown(in("hard"), 1000, 2000))
	require.NoError(t, unix.Chmod(in("hard"), 0o4755))
	require.NoError(t, os.Symlink("/etc/hostname", in("link")))
	require.NoError(t, os.Lchown(in("link"), 1000, 1000))
	require.NoError(t, unix.Mkfifo(in("fifo"), 0o622))
	sparse, err := os.Create(in("sparse"))
	require.NoError(t, err)
	_, err = sparse.WriteAt([]byte("middle"), 1<<30)
	require.NoError(t, err)
	require.NoError(t, sparse.Truncate(2<<30))
	require.NoError(t, sparse.Close())
	attributes := unix.Setxattr(in("hard"), "trusted.mote", []byte("value"), 0) == nil
	old := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	for _, name := range []string{"hard", "dir", "."} {
		require.NoError(t, os.Chtimes(in(name), old, old))
	}
	require.NoError(t, os.Chown(src, 0, 3000)) // an fsGroup
	require.NoError(t, os.Chtimes(src, old, old))

	volume, _, err := p.Provision(t.Context(), cloneOf("2Ki"))
	require.NoError(t, err)
	out := func(name string) string { return filepath.Join(volume.Spec.Local.Path, name) }
	for _, name := range []string{".", "dir", "dir/not\xffUTF-8", "dir/not\xffUTF-8/a \\ b", "hard", "link", "fifo", "sparse"} {
		var want, got syscall.Stat_t
		require.NoError(t, syscall.Lstat(in(name), &want), name)
		require.NoError(t, syscall.Lstat(out(name), &got), name)
		require.Equal(t, []any{want.Mode, want.Uid, want.Gid, want.Nlink},
			[]any{got.Mode, got.Uid, got.Gid, got.Nlink}, name)
		require.Equal(t, want.Mtim, got.Mtim, name)
		if want.Mode&syscall.S_IFMT == syscall.S_IFREG {
			require.Equal(t, want.Size, got.Size, name)
		}
	}
	text, err := os.ReadFile(out("dir/not\xffUTF-8/a \\ b"))
	require.NoError(t, err)
	require.Equal(t, "text", string(text))
	to, err := os.Readlink(out("link"))
	require.NoError(t, err)
	require.Equal(t, "/etc/hostname", to)
	data, err := os.Open(out("sparse"))
	require.NoError(t, err)
	defer data.Close()
	middle := make([]byte, 6)
	_, err = data.ReadAt(middle, 1<<30)
	require.NoError(t, err)
	require.Equal(t, "middle", string(middle))
	var stat syscall.Stat_t
	require.NoError(t, syscall.Lstat(out("sparse"), &stat))
	require.Less(t, stat.Blocks*512, int64(1<<20), "holes are kept")
	if attributes {
		value := make([]byte, 10)
		n, err := unix.Getxattr(out("hard"), "trusted.mote", value)
		require.NoError(t, err)
		require.Equal(t, "value", string(value[:n]))
	}
	again, _, err := p.Provision(t.Context(), cloneOf("2Ki"))
	require.NoError(t, err, "its PersistentVolume was not made")
	require.Equal(t, volume, again)
	require.Empty(t, leftovers(t, p))
}

// leftovers returns the remains of incomplete copies.
func leftovers(t *testing.T, p *Provisioner) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.cfg.volumes(), cloning+"*"))
	require.NoError(t, err)
	return found
}

// TestCloneThatIsInterrupted checks that an interrupted clone leaves no volume. The next attempt
// completes it, or the next start removes it.
func TestCloneThatIsInterrupted(t *testing.T) {
	p := newProvisioner(t)
	src, _ := newSource(t, p)
	require.NoError(t, os.WriteFile(filepath.Join(src, "a"), []byte("text"), 0o600))
	stopped, stop := context.WithCancel(t.Context())
	stop()
	_, _, err := p.Provision(stopped, cloneOf("1Ki"))
	require.Error(t, err)
	require.NoDirExists(t, filepath.Join(p.cfg.volumes(), "pvc-2_ns_copy"))
	require.Empty(t, leftovers(t, p))

	half := filepath.Join(p.cfg.volumes(), cloning+"pvc-2_ns_copy")
	require.NoError(t, os.Mkdir(half, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(half, "b"), nil, 0o600))
	volume, _, err := p.Provision(t.Context(), cloneOf("1Ki"))
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(volume.Spec.Local.Path, "b"))
	require.FileExists(t, filepath.Join(volume.Spec.Local.Path, "a"))

	require.NoError(t, os.Mkdir(half, 0o700))
	require.NoError(t, p.prepareDir())
	require.Empty(t, leftovers(t, p))
	require.DirExists(t, volume.Spec.Local.Path)
}

// TestLinksLeadNoCloneOutOfItsSource checks that links do not lead a copy out of its source. A pod
// may replace a directory by a link after the copy has read the entry.
func TestLinksLeadNoCloneOutOfItsSource(t *testing.T) {
	p := newProvisioner(t)
	src, _ := newSource(t, p)
	outside := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(outside, "key"), []byte("secret"), 0o600))
	require.NoError(t, os.Symlink(outside, filepath.Join(src, "dir")))
	root, err := os.OpenRoot(src)
	require.NoError(t, err)
	defer root.Close()
	c := &copier{t.Context(), root, t.TempDir(), map[uint64]string{}}
	require.Error(t, c.directory("dir"))
	require.Error(t, c.file("dir/key", filepath.Join(c.to, "key")))
	require.NoError(t, os.Symlink(filepath.Join(outside, "key"), filepath.Join(src, "file")))
	require.Error(t, c.file("file", filepath.Join(c.to, "file")))
}

// TestSourcesThatAreRefused checks that such a source causes an event, by the library, and no empty
// volume.
func TestSourcesThatAreRefused(t *testing.T) {
	p := newProvisioner(t)
	_, volume := newSource(t, p)
	group, other := "snapshot.storage.k8s.io", "elsewhere"
	for want, change := range map[string]func(*corev1.PersistentVolumeClaimSpec){
		"class local cannot fill a volume from VolumeSnapshot.snapshot.storage.k8s.io nightly": func(s *corev1.PersistentVolumeClaimSpec) {
			s.DataSource = &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: "nightly"}
			s.DataSourceRef = nil
		},
		"class local cannot fill a volume from PersistentVolumeClaim.snapshot.storage.k8s.io last": func(s *corev1.PersistentVolumeClaimSpec) {
			s.DataSource, s.DataSourceRef = nil, &corev1.TypedObjectReference{APIGroup: &group, Kind: "PersistentVolumeClaim", Name: "last"}
		},
		"class local cannot clone claim elsewhere/src: it is in another namespace": func(s *corev1.PersistentVolumeClaimSpec) {
			s.DataSourceRef.Namespace = &other
		},
		`clone claim gone: persistentvolumeclaims "gone" not found`: func(s *corev1.PersistentVolumeClaimSpec) { s.DataSourceRef.Name = "gone" },
		"clone claim src: it has 1Ki and the clone 10; ask for 1Ki at least": func(s *corev1.PersistentVolumeClaimSpec) {
			s.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10")}
		},
	} {
		o := cloneOf("1Ki")
		change(&o.PVC.Spec)
		_, _, err := p.Provision(t.Context(), o)
		require.ErrorContains(t, err, want)
		require.NoDirExists(t, filepath.Join(p.cfg.volumes(), "pvc-2_ns_copy"))
	}
	refused := func(want string) {
		t.Helper()
		_, _, err := p.Provision(t.Context(), cloneOf("1Ki"))
		require.ErrorContains(t, err, want)
	}
	update := func() {
		t.Helper()
		_, err := p.kube.CoreV1().PersistentVolumes().Update(t.Context(), volume, metav1.UpdateOptions{})
		require.NoError(t, err)
	}
	affinity := volume.Spec.NodeAffinity
	volume.Spec.NodeAffinity = nil
	update()
	refused("is not on node a")
	volume.Spec.NodeAffinity, volume.Annotations = affinity, nil
	update()
	refused("is not of class local")
	volume.Annotations = map[string]string{annProvisionedBy: provisioner}
	update()

	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "user"}, Spec: corev1.PodSpec{NodeName: "a", Volumes: []corev1.Volume{
		{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "src"}}},
	}}}
	_, err := p.kube.CoreV1().Pods("ns").Create(t.Context(), pod, metav1.CreateOptions{})
	require.NoError(t, err)
	refused("pod user uses it")
	pod.Status.Phase = corev1.PodSucceeded
	_, err = p.kube.CoreV1().Pods("ns").Update(t.Context(), pod, metav1.UpdateOptions{})
	require.NoError(t, err)
	_, _, err = p.Provision(t.Context(), cloneOf("1Ki"))
	require.NoError(t, err)
}
