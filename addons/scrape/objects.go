package scrape

//lint:file-ignore SA1019 Endpoints are deprecated; the Prometheus operator looks for targets by them.

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/mote-k8s/mote/addons/api"
)

// target is the port of a component. The port's name is the one in kube-prometheus' monitors; it
// determines whether TLS is used.
type target struct {
	name     string // name of the component and its objects, also in their labels
	portName string
	port     int32
}

func known() []target {
	return []target{
		{"kube-controller-manager", "https-metrics", 10257},
		{"kube-scheduler", "https-metrics", 10259},
		{"kube-proxy", "http-metrics", 10249},
	}
}

func (c Config) targets() []target {
	return slices.DeleteFunc(known(), func(t target) bool { return !slices.Contains(c.Components, t.name) })
}

// objects returns the Service of a target and its endpoints in both forms. The endpoints are needed
// because no pod is behind the Service.
func (c Config) objects(t target) []api.Object {
	meta := func() metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: t.name, Namespace: metav1.NamespaceSystem, Labels: map[string]string{
			"app.kubernetes.io/name": t.name, // kube-prometheus selects it
			"k8s-app":                t.name, // its predecessors and other software select it
		}}
	}
	slice, legacy := meta(), meta()
	slice.Labels[discoveryv1.LabelServiceName] = t.name
	slice.Labels[discoveryv1.LabelManagedBy] = api.Mote
	legacy.Labels[discoveryv1.LabelSkipMirror] = "true"
	ready, protocol := true, corev1.ProtocolTCP
	address := c.Address.String()
	family := discoveryv1.AddressTypeIPv4
	if c.Address.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	return []api.Object{
		{Resource: corev1.SchemeGroupVersion.WithResource("services"), Object: &corev1.Service{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta(),
			Spec: corev1.ServiceSpec{
				ClusterIP: corev1.ClusterIPNone,
				Ports:     []corev1.ServicePort{{Name: t.portName, Protocol: protocol, Port: t.port, TargetPort: intstr.FromInt32(t.port)}},
			},
		}},
		{Resource: discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), Object: &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: slice,
			AddressType: family,
			Endpoints: []discoveryv1.Endpoint{{
				Addresses: []string{address}, NodeName: &c.NodeName, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
			}},
			Ports: []discoveryv1.EndpointPort{{Name: &t.portName, Protocol: &protocol, Port: &t.port}},
		}},
		{Resource: corev1.SchemeGroupVersion.WithResource("endpoints"), Object: &corev1.Endpoints{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Endpoints"}, ObjectMeta: legacy,
			Subsets: []corev1.EndpointSubset{{
				Addresses: []corev1.EndpointAddress{{IP: address, NodeName: &c.NodeName}},
				Ports:     []corev1.EndpointPort{{Name: t.portName, Protocol: protocol, Port: t.port}},
			}},
		}},
	}
}
