package storage

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// These are the subjects that `mote status` reports on. The key of the object in the caches
// follows.
const (
	aboutClaim  = "PersistentVolumeClaim "
	aboutVolume = "PersistentVolume "
)

// Trouble implements component.Troubled. A report on an object ends when the object is gone or the
// claim has a volume, from any provisioner.
func (p *Provisioner) Trouble() []string {
	p.troubles.Forget(func(about string) bool {
		if key, ok := strings.CutPrefix(about, aboutClaim); ok {
			object, found, err := p.claims.GetStore().GetByKey(key)
			return err == nil && (!found || object.(*corev1.PersistentVolumeClaim).Spec.VolumeName != "")
		}
		key, ok := strings.CutPrefix(about, aboutVolume)
		if !ok {
			return false
		}
		_, found, err := p.volumes.GetStore().GetByKey(key)
		return err == nil && !found
	})
	return p.troubles.Trouble()
}

// note records an error of an object; the library makes the event.
func (p *Provisioner) note(about string, err error) {
	what := ""
	if err != nil {
		what = err.Error()
	}
	p.troubles.Note(about, what)
}

func classRef() *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "storage.k8s.io/v1", Kind: "StorageClass", Name: className}
}
