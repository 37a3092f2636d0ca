package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// annSelectedNode on a claim holds the scheduler's choice of a node.
const annSelectedNode = "volume.kubernetes.io/selected-node"

// maxClaimName limits the part of a claim's name that is used in a directory name, which may have
// 255 bytes.
const maxClaimName = 100

// ShouldProvision implements controller.Qualifier. A claim whose pod runs on another node is left
// to that node.
func (p *Provisioner) ShouldProvision(_ context.Context, claim *corev1.PersistentVolumeClaim) bool {
	node := claim.Annotations[annSelectedNode]
	return node == "" || node == p.cfg.NodeName
}

// ShouldDelete implements controller.DeletionGuard.
func (p *Provisioner) ShouldDelete(_ context.Context, volume *corev1.PersistentVolume) bool {
	affinity := volume.Spec.NodeAffinity
	if affinity == nil || affinity.Required == nil {
		return false
	}
	for _, term := range affinity.Required.NodeSelectorTerms {
		for _, e := range term.MatchExpressions {
			if e.Key == corev1.LabelHostname && slices.Contains(e.Values, p.cfg.NodeName) {
				return true
			}
		}
	}
	return false
}

// Provision implements controller.Provisioner. The attempt is finished when it returns, with
// success or an error.
func (p *Provisioner) Provision(ctx context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	volume, err := p.provision(ctx, o)
	p.note(aboutClaim+o.PVC.Namespace+"/"+o.PVC.Name, err)
	return volume, controller.ProvisioningFinished, err
}

func (p *Provisioner) provision(ctx context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, error) {
	claim := o.PVC
	if claim.Spec.Selector != nil {
		return nil, errors.New("a claim with a selector is for volumes that somebody has made; remove the selector or make one")
	}
	source, err := sourceOf(claim)
	if err != nil {
		return nil, err
	}
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if err := p.fits(size); err != nil {
		return nil, err
	}
	name := claim.Name[:min(len(claim.Name), maxClaimName)]
	dir := fmt.Sprintf("%s_%s_%s", o.PVName, claim.Namespace, name)
	if source != "" {
		err = p.clone(ctx, claim, source, dir)
	} else {
		err = p.makeDir(dir)
	}
	if err != nil {
		return nil, err
	}
	mode := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: size},
			VolumeMode:                    &mode,
			MountOptions:                  o.StorageClass.MountOptions,
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				Local: &corev1.LocalVolumeSource{Path: filepath.Join(p.cfg.link(), dir)},
			},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{p.cfg.NodeName},
				}}}},
			}},
		},
	}, nil
}

// makeDir makes a volume's directory. Any user may write to it, because pods run as any user. The
// data directory above it keeps out the machine's own users.
func (p *Provisioner) makeDir(name string) error {
	path := filepath.Join(p.cfg.volumes(), name)
	err := os.Mkdir(path, 0o777)
	if err == nil || errors.Is(err, os.ErrExist) {
		err = os.Chmod(path, 0o777) // independent of the umask
	}
	if err != nil {
		return fmt.Errorf("make the volume's directory: %w", err)
	}
	return nil
}

// fits refuses a claim that is larger than the free space on the disk. A directory has no limit of
// its own, so other volumes may use up the free space later.
func (p *Provisioner) fits(size resource.Quantity) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(p.cfg.volumes(), &fs); err != nil {
		return fmt.Errorf("ask for free space of %s: %w", p.cfg.volumes(), err)
	}
	unit := int64(fs.Frsize)
	free, total := int64(fs.Bavail)*unit, int64(fs.Blocks)*unit
	if size.CmpInt64(free) <= 0 {
		return nil
	}
	return fmt.Errorf("the claim wants %s, but the disk of %s on node %s has %s of %s free; free some, or ask for less",
		size.String(), p.cfg.volumes(), p.cfg.NodeName, rough(free), rough(total))
}

// rough formats a number of bytes for people.
func rough(bytes int64) string {
	for _, unit := range []struct {
		name string
		size int64
	}{{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}} {
		if bytes >= unit.size {
			return fmt.Sprintf("%.1f%s", float64(bytes)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprint(bytes)
}

// Delete implements controller.Provisioner. It may be called again after a partial removal.
func (p *Provisioner) Delete(_ context.Context, volume *corev1.PersistentVolume) error {
	err := p.remove(volume)
	if ignored := new(controller.IgnoredError); !errors.As(err, &ignored) {
		p.note(aboutVolume+volume.Name, err)
	}
	return err
}

func (p *Provisioner) remove(volume *corev1.PersistentVolume) error {
	local := volume.Spec.Local
	if local == nil || filepath.Dir(local.Path) != p.cfg.link() {
		return &controller.IgnoredError{Reason: "it is not a directory of " + p.cfg.link()}
	}
	// Use an os.Root, because nothing in a volume may lead a removal out of it.
	root, err := os.OpenRoot(p.cfg.volumes())
	if err != nil {
		return fmt.Errorf("remove the volume's directory: %w", err)
	}
	defer root.Close()
	if err := root.RemoveAll(filepath.Base(local.Path)); err != nil {
		return fmt.Errorf("remove the volume's directory: %w", err)
	}
	return nil
}
