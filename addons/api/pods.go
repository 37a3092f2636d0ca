package api

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NamespaceSystem is where the cluster's own parts live.
const NamespaceSystem = metav1.NamespaceSystem

// Server is a part of this process that other clusters run as a pod. Policies which select such a pod as a peer
// mean the part: Address, and the ports that it serves there.
type Server struct {
	Namespace string
	Labels    map[string]string
	Address   netip.Addr
	Ports     []ServerPort
}

// ServerPort is a port of the pod, and where this process serves it.
type ServerPort struct {
	Name         string
	Protocol     corev1.Protocol
	Port, Served int32
}

// IngressMark is the SO_MARK of connections that are made to pods for somebody outside the cluster. Everything else
// that the node sends to its pods passes every policy; what carries the mark is judged as coming from a pod
// of kube-system with IngressLabels. It is one bit that kube-proxy, the kubelet and the CNI plugins
// leave alone, so others may be set beside it.
const IngressMark = 0x1000000

// IngressLabels are the labels of the pod that the ingress would be, in NamespaceSystem.
func IngressLabels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "ingress", ManagedBy: Mote}
}
