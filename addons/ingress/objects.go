package ingress

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/addons/api"
)

const (
	className  = "mote"
	controller = "mote.dev/ingress"
	// annClass names the class in objects that are older than spec.ingressClassName.
	annClass = "kubernetes.io/ingress.class"
)

// ownObjects returns the objects that the addon owns. They are created once and never overwritten:
// users may change whether the class is the default, and no other field can change.
func ownObjects() []api.Object {
	return []api.Object{{
		Once: true, Resource: networkingv1.SchemeGroupVersion.WithResource("ingressclasses"), Object: &networkingv1.IngressClass{
			TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IngressClass"},
			ObjectMeta: metav1.ObjectMeta{
				Name: className, Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"},
			},
			Spec: networkingv1.IngressClassSpec{Controller: controller},
		},
	}}
}

// ours returns the Ingresses that mote serves: those of a class with mote's controller, and those
// without a class while such a class is the default. Ingresses without a class are older than the
// default class, because the API adds it to new ones.
func ours(ingresses []*networkingv1.Ingress, classes []*networkingv1.IngressClass) []*networkingv1.Ingress {
	our, isDefault := make(map[string]bool), false
	for _, c := range classes {
		if c.Spec.Controller == controller {
			our[c.Name] = true
			isDefault = isDefault || c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true"
		}
	}
	var found []*networkingv1.Ingress
	for _, i := range ingresses {
		name, named := i.Annotations[annClass]
		if i.Spec.IngressClassName != nil {
			name, named = *i.Spec.IngressClassName, true
		}
		if i.DeletionTimestamp == nil && (our[name] || !named && isDefault) {
			found = append(found, i)
		}
	}
	return found
}
