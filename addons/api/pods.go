package api

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NamespaceSystem is the namespace of the cluster's own components.
const NamespaceSystem = metav1.NamespaceSystem

// Server is a component of this process that other clusters run as a pod. Policies that select such
// a pod as a peer mean this component: Address, and the ports that it serves there.
type Server struct {
	Namespace string
	Labels    map[string]string
	Address   netip.Addr
	Ports     []ServerPort
}

// ServerPort is a port of the pod, with the port where this process serves it.
type ServerPort struct {
	Name         string
	Protocol     corev1.Protocol
	Port, Served int32
}

// IngressMark is the SO_MARK of connections to pods that are made for clients outside the cluster.
// All other packets from the node to its pods pass every policy. Marked packets are checked as
// packets from a pod in kube-system with IngressLabels. The mark is one bit that kube-proxy, the
// kubelet and the CNI plugins do not use, so other bits may be set beside it.
const IngressMark = 0x1000000

// IngressLabels returns the labels of the pod that the ingress would be, in NamespaceSystem.
func IngressLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "ingress", ManagedBy: Mote}
}
