package storage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

func newProvisioner(t *testing.T) *Provisioner {
	t.Helper()
	dir := t.TempDir()
	p := &Provisioner{
		cfg:  Config{NodeName: "a", DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run")},
		kube: fake.NewClientset(),
	}
	p.follow()
	require.NoError(t, os.Mkdir(p.cfg.RunDir, 0o700))
	require.NoError(t, p.prepareDir())
	return p
}

func options(name, size string) controller.ProvisionOptions {
	reclaim := corev1.PersistentVolumeReclaimRetain
	return controller.ProvisionOptions{
		PVName:       "pvc-1",
		StorageClass: &storagev1.StorageClass{ReclaimPolicy: &reclaim},
		PVC: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
				Resources: corev1.VolumeResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
				},
			},
		},
	}
}

func TestProvisionAndDelete(t *testing.T) {
	p := newProvisioner(t)
	volume, state, err := p.Provision(t.Context(), options("data", "1Ki"))
	require.NoError(t, err)
	require.Equal(t, controller.ProvisioningFinished, state)
	require.Equal(t, filepath.Join(p.cfg.RunDir, "volumes", "pvc-1_ns_data"), volume.Spec.Local.Path)
	require.Equal(t, corev1.PersistentVolumeReclaimRetain, volume.Spec.PersistentVolumeReclaimPolicy)
	require.True(t, p.ShouldDelete(t.Context(), volume))
	info, err := os.Stat(volume.Spec.Local.Path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o777), info.Mode().Perm(), "whatever the umask")
	// A link in a volume must not lead a removal out of the volume.
	outside := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(outside, nil, 0o600))
	require.NoError(t, os.Symlink(filepath.Dir(outside), filepath.Join(volume.Spec.Local.Path, "link")))

	again, _, err := p.Provision(t.Context(), options("data", "1Ki"))
	require.NoError(t, err, "a repeated attempt finds its directory")
	require.Equal(t, volume, again)

	require.NoError(t, p.Delete(t.Context(), volume))
	require.NoDirExists(t, volume.Spec.Local.Path)
	require.FileExists(t, outside)
	require.NoError(t, p.Delete(t.Context(), volume), "a repeated attempt has nothing left to do")
}

func TestProvisionRefuses(t *testing.T) {
	p := newProvisioner(t)
	_, _, err := p.Provision(t.Context(), options("data", "900Ti"))
	require.ErrorContains(t, err, "the claim wants 900Ti, but the disk of")
	selects := options("data", "1Ki")
	selects.PVC.Spec.Selector = &metav1.LabelSelector{}
	_, _, err = p.Provision(t.Context(), selects)
	require.ErrorContains(t, err, "selector")
	_, _, err = p.Provision(t.Context(), options(strings.Repeat("a", 253), "1Ki"))
	require.NoError(t, err, "the longest name is not too long for a directory")
}

func TestDeleteIgnoresWhatIsNotOurs(t *testing.T) {
	p := newProvisioner(t)
	for _, path := range []string{"", "/etc", p.cfg.link(), filepath.Join(p.cfg.link(), "a", "b"), p.cfg.volumes() + "/a"} {
		volume := &corev1.PersistentVolume{}
		if path != "" {
			volume.Spec.Local = &corev1.LocalVolumeSource{Path: path}
		}
		var ignored *controller.IgnoredError
		require.ErrorAs(t, p.Delete(t.Context(), volume), &ignored, path)
	}
	require.DirExists(t, p.cfg.volumes())
}

func TestOtherNodesBusiness(t *testing.T) {
	p := newProvisioner(t)
	claim := &corev1.PersistentVolumeClaim{}
	require.True(t, p.ShouldProvision(t.Context(), claim))
	claim.Annotations = map[string]string{annSelectedNode: "a"}
	require.True(t, p.ShouldProvision(t.Context(), claim))
	claim.Annotations[annSelectedNode] = "b"
	require.False(t, p.ShouldProvision(t.Context(), claim))
	require.False(t, p.ShouldDelete(t.Context(), &corev1.PersistentVolume{}))
}

func TestLinkFollowsTheDataDirectory(t *testing.T) {
	p := newProvisioner(t)
	p.cfg.DataDir += "-moved"
	require.NoError(t, p.prepareDir())
	target, err := os.Readlink(p.cfg.link())
	require.NoError(t, err)
	require.Equal(t, p.cfg.volumes(), target)
}

func TestRough(t *testing.T) {
	for bytes, want := range map[int64]string{5: "5", 1536: "1.5Ki", 3 << 40: "3.0Ti"} {
		require.Equal(t, want, rough(bytes))
	}
}

// TestTrouble checks that `mote status` names each claim without a volume while it waits.
func TestTrouble(t *testing.T) {
	p := newProvisioner(t)
	large := options("data", "900Ti")
	_, _, err := p.Provision(t.Context(), large)
	require.Error(t, err)
	require.Empty(t, p.Trouble(), "the claim is gone already")
	require.NoError(t, p.claims.GetStore().Add(large.PVC))
	_, _, err = p.Provision(t.Context(), large)
	require.Error(t, err)
	require.Len(t, p.Trouble(), 1)
	require.Contains(t, p.Trouble()[0], "PersistentVolumeClaim ns/data: the claim wants 900Ti, but the disk of")
	bound := large.PVC.DeepCopy()
	bound.Spec.VolumeName = "somebody's"
	require.NoError(t, p.claims.GetStore().Update(bound))
	require.Empty(t, p.Trouble())

	volume, _, err := p.Provision(t.Context(), options("other", "1Ki"))
	require.NoError(t, err)
	require.NoError(t, p.volumes.GetStore().Add(volume))
	require.NoError(t, os.Rename(p.cfg.volumes(), p.cfg.volumes()+".away"))
	require.Error(t, p.Delete(t.Context(), volume))
	require.Len(t, p.Trouble(), 1)
	require.Contains(t, p.Trouble()[0], "PersistentVolume pvc-1: remove the volume's directory")
	require.NoError(t, os.Rename(p.cfg.volumes()+".away", p.cfg.volumes()))
	require.NoError(t, p.Delete(t.Context(), volume))
	require.Empty(t, p.Trouble())
}

// TestFullDisk checks that the claim's event and `mote status` report a disk on which not even a
// directory can be made.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	p := newProvisioner(t)
	require.NoError(t, unix.Mount("tmpfs", p.cfg.volumes(), "tmpfs", 0, "size=1m,nr_inodes=1"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(p.cfg.volumes(), 0)) })
	claim := options("data", "1Ki")
	require.NoError(t, p.claims.GetStore().Add(claim.PVC))
	_, _, err := p.Provision(t.Context(), claim)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Len(t, p.Trouble(), 1)
	require.Contains(t, p.Trouble()[0], "no space left on device")
	require.NoError(t, unix.Mount("", p.cfg.volumes(), "", unix.MS_REMOUNT, "nr_inodes=10"))
	_, _, err = p.Provision(t.Context(), claim)
	require.NoError(t, err)
	require.Empty(t, p.Trouble())
}
