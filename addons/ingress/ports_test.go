package ingress

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServiceWith(t *testing.T) {
	node := netip.MustParseAddr("192.0.2.1")
	service := func(protocol corev1.Protocol, port, nodePort int32, address string) []*corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}
		s.Spec.Ports = []corev1.ServicePort{{Protocol: protocol, Port: port, NodePort: nodePort}}
		if address != "" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
		}
		return []*corev1.Service{s}
	}
	const taken = "the Service ns/s"
	require.Equal(t, taken, serviceWith(service(corev1.ProtocolTCP, 80, 30000, "192.0.2.1"), node, 80))
	require.Equal(t, taken, serviceWith(service(corev1.ProtocolTCP, 8080, 80, ""), node, 80))
	require.Empty(t, serviceWith(service(corev1.ProtocolTCP, 80, 0, ""), node, 80), "it is a cluster address'")
	require.Empty(t, serviceWith(service(corev1.ProtocolTCP, 80, 0, "192.0.2.130"), node, 80), "it is a pool address'")
	require.Empty(t, serviceWith(service(corev1.ProtocolUDP, 80, 0, "192.0.2.1"), node, 80))
}
