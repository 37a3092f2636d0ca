package dns

//lint:file-ignore SA1019 Endpoints are deprecated; they are here for who still asks for them.

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// endpoints returns the Endpoints object that matches the EndpointSlice. The API is deprecated;
// some tools and manuals still read it.
func (c Config) endpoints(meta metav1.ObjectMeta) *corev1.Endpoints {
	subset := corev1.EndpointSubset{Addresses: []corev1.EndpointAddress{{IP: c.Address.String(), NodeName: &c.NodeName}}}
	for _, p := range servicePorts() {
		subset.Ports = append(subset.Ports, corev1.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: endpointPort(p)})
	}
	return &corev1.Endpoints{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Endpoints"}, ObjectMeta: meta,
		Subsets: []corev1.EndpointSubset{subset},
	}
}
