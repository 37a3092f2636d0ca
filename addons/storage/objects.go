package storage

import (
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/addons/api"
)

const (
	className   = "local"
	provisioner = "local.mote.dev"
	// account is the identity of the provisioner towards the apiserver.
	account  = "local-storage"
	roleName = "mote:local-storage"
	// annDefault marks the default class, which claims without a class use.
	annDefault = "storageclass.kubernetes.io/is-default-class"
)

// objects returns the objects that the addon owns.
func objects() []api.Object {
	rbac := func(kind string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: kind}
	}
	reclaim, binding := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer
	return []api.Object{
		{Resource: corev1.SchemeGroupVersion.WithResource("serviceaccounts"), Object: &corev1.ServiceAccount{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
			ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: metav1.NamespaceSystem},
		}},
		{Resource: rbacv1.SchemeGroupVersion.WithResource("clusterroles"), Object: &rbacv1.ClusterRole{
			TypeMeta: rbac("ClusterRole"), ObjectMeta: metav1.ObjectMeta{Name: roleName},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{""}, Resources: []string{"persistentvolumes"},
					Verbs: []string{"get", "list", "watch", "create", "update", "patch", "delete"}},
				{APIGroups: []string{""}, Resources: []string{"persistentvolumeclaims"},
					Verbs: []string{"get", "list", "watch", "update"}},
				// These rights are needed to check whether a claim that is cloned is in use.
				{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}},
				{APIGroups: []string{"storage.k8s.io"}, Resources: []string{"storageclasses"},
					Verbs: []string{"get", "list", "watch"}},
				{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "update", "patch"}},
			},
		}},
		{Resource: rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings"), Object: &rbacv1.ClusterRoleBinding{
			TypeMeta: rbac("ClusterRoleBinding"), ObjectMeta: metav1.ObjectMeta{Name: roleName},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: roleName},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: account}},
		}},
		// The class is created once and never overwritten: users may change whether it is the
		// default, and no other field can change.
		{Once: true, Resource: storagev1.SchemeGroupVersion.WithResource("storageclasses"), Object: &storagev1.StorageClass{
			TypeMeta:    metav1.TypeMeta{APIVersion: "storage.k8s.io/v1", Kind: "StorageClass"},
			ObjectMeta:  metav1.ObjectMeta{Name: className, Annotations: map[string]string{annDefault: "true"}},
			Provisioner: provisioner, ReclaimPolicy: &reclaim, VolumeBindingMode: &binding,
		}},
	}
}
