package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// cloning prefixes the name of a volume's directory until its copy is complete.
const cloning = ".clone-"

// sourceOf returns the name of the claim that a claim clones, or "" if the volume is to be empty.
func sourceOf(claim *corev1.PersistentVolumeClaim) (string, error) {
	var kind, name string
	group, namespace := new(string), new(string)
	// The API also fills in dataSourceRef; an old object may lack it.
	if ref := claim.Spec.DataSource; ref != nil {
		kind, name = ref.Kind, ref.Name
		if ref.APIGroup != nil {
			group = ref.APIGroup
		}
	}
	if ref := claim.Spec.DataSourceRef; ref != nil {
		kind, name = ref.Kind, ref.Name
		if ref.APIGroup != nil {
			group = ref.APIGroup
		}
		if ref.Namespace != nil {
			namespace = ref.Namespace
		}
	}
	switch {
	case kind == "":
		return "", nil
	case kind != "PersistentVolumeClaim" || *group != "":
		return "", fmt.Errorf("class local cannot fill a volume from %s %s; name a PersistentVolumeClaim of class local as the source, or none",
			strings.TrimSuffix(kind+"."+*group, "."), name)
	case *namespace != "" && *namespace != claim.Namespace:
		return "", fmt.Errorf("class local cannot clone claim %s/%s: it is in another namespace", *namespace, name)
	}
	return name, nil
}

// source returns the directory name of the volume that a claim clones. The volume is on this node,
// is not larger than the clone, and no pod uses it.
func (p *Provisioner) source(ctx context.Context, claim *corev1.PersistentVolumeClaim, name string) (string, error) {
	from, err := p.kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("clone claim %s: %w", name, err)
	}
	if from.Spec.VolumeName == "" || from.Status.Phase != corev1.ClaimBound {
		return "", fmt.Errorf("clone claim %s: it has no volume yet", name)
	}
	volume, err := p.kube.CoreV1().PersistentVolumes().Get(ctx, from.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("clone claim %s: %w", name, err)
	}
	if volume.Annotations[annProvisionedBy] != provisioner || volume.Spec.Local == nil || filepath.Dir(volume.Spec.Local.Path) != p.cfg.link() {
		return "", fmt.Errorf("clone claim %s: its volume %s is not of class local", name, volume.Name)
	}
	if !p.ShouldDelete(ctx, volume) {
		return "", fmt.Errorf("clone claim %s: its volume %s is not on node %s; schedule the pod to the node that has it", name, volume.Name, p.cfg.NodeName)
	}
	has, wants := volume.Spec.Capacity[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if wants.Cmp(has) < 0 {
		return "", fmt.Errorf("clone claim %s: it has %s and the clone %s; ask for %s at least", name, has.String(), wants.String(), has.String())
	}
	if err := p.unused(ctx, claim.Namespace, name); err != nil {
		return "", err
	}
	return filepath.Base(volume.Spec.Local.Path), nil
}

// annProvisionedBy on a volume names the provisioner that made it.
const annProvisionedBy = "pv.kubernetes.io/provisioned-by"

// unused returns an error while a pod uses a claim: a file that is written during the copy would be
// copied in part.
func (p *Provisioner) unused(ctx context.Context, namespace, claim string) error {
	pods, err := p.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the pods that use claim %s: %w", claim, err)
	}
	for _, pod := range pods.Items {
		if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue // a pod that is not scheduled may wait for the clone
		}
		for _, volume := range pod.Spec.Volumes {
			if volume.PersistentVolumeClaim != nil && volume.PersistentVolumeClaim.ClaimName == claim ||
				volume.Ephemeral != nil && pod.Name+"-"+volume.Name == claim {
				return fmt.Errorf("clone claim %s: pod %s uses it, and a copy of files that change is not whole; stop the pod meanwhile", claim, pod.Name)
			}
		}
	}
	return nil
}

// clone makes the directory dir a copy of the volume of another claim. The directory appears
// completely or not at all. After an interruption, clone may be called again.
func (p *Provisioner) clone(ctx context.Context, claim *corev1.PersistentVolumeClaim, name, dir string) error {
	target := filepath.Join(p.cfg.volumes(), dir)
	if _, err := os.Lstat(target); err == nil {
		return nil // complete, but its PersistentVolume was not created
	}
	from, err := p.source(ctx, claim, name)
	if err != nil {
		return err
	}
	temp := filepath.Join(p.cfg.volumes(), cloning+dir)
	if err := os.RemoveAll(temp); err != nil {
		return fmt.Errorf("clone claim %s: remove what an interrupted copy left: %w", name, err)
	}
	err = p.copyVolume(ctx, filepath.Join(p.cfg.volumes(), from), temp)
	if err == nil {
		err = p.unused(ctx, claim.Namespace, name) // a pod may have started meanwhile
	}
	if err == nil {
		err = os.Rename(temp, target)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("clone claim %s: %w", name, err), os.RemoveAll(temp))
	}
	return nil
}

// copyVolume copies a volume if there is enough space. The copy is on the disk when it returns.
func (p *Provisioner) copyVolume(ctx context.Context, from, to string) error {
	root, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer root.Close()
	used, err := usage(ctx, root, ".", make(map[uint64]bool))
	if err != nil {
		return err
	}
	if err := p.fits(*resource.NewQuantity(used, resource.BinarySI)); err != nil {
		return err
	}
	if err := copyTree(ctx, root, to); err != nil {
		return err
	}
	dir, err := os.Open(to)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("write the copy to the disk: %w", err)
	}
	return nil
}

// dropInterrupted removes copies that were incomplete when mote ended.
func (p *Provisioner) dropInterrupted() error {
	entries, err := os.ReadDir(p.cfg.volumes())
	if err != nil {
		return fmt.Errorf("list the volumes' directory: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), cloning) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(p.cfg.volumes(), entry.Name())); err != nil {
			return fmt.Errorf("remove an interrupted clone: %w", err)
		}
	}
	return nil
}

// sys returns the data on a file that is specific to this operating system.
func sys(info os.FileInfo) (*syscall.Stat_t, error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("no owner is known of %s", info.Name())
	}
	return stat, nil
}
