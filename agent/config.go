// Package agent is mote's node: containerd, kubelet, kube-proxy, the pod network and images, as
// components of the calling process.
package agent

import "net/netip"

// Config says what node to run. It is validated once and never changed afterwards.
type Config struct {
	// DataDir holds containerd's root, CNI configuration and credentials (<data-dir>/agent).
	DataDir string
	// RunDir holds sockets and containerd's state, e.g. /run/mote. Mode 0700.
	RunDir string
	// KubeletDir is the kubelet's root, default /var/lib/kubelet.
	KubeletDir string
	// PayloadDir holds the unpacked per-pod programs (agent/payload).
	PayloadDir string
	// ImagesDir is scanned for image archives at start.
	ImagesDir string
	// Server is the apiserver's URL, e.g. https://127.0.0.1:6443.
	Server string
	// Token is exchanged for credentials when CredentialsDir holds none (later: mote agent).
	Token string
	// CredentialsDir holds the files listed in docs/architecture.md, "The seam".
	CredentialsDir string
	// NodeName and NodeIP identify the node; NodeIP is the bridge address by default.
	NodeName string
	NodeIP   netip.Addr
	// NodeLabels and NodeTaints are registered with the node (key=value, key=value:effect).
	NodeLabels, NodeTaints []string
	// ClusterCIDR is all pods' network, PodCIDR this node's part of it, with its bridge address first.
	ClusterCIDR, PodCIDR netip.Prefix
	ClusterDNS           netip.Addr
	ClusterDomain        string
	// Bridge is the name of the pod network's bridge, mote0.
	Bridge string
	// CNI is "bridge" (ours) or "none" (the user's, in /etc/cni/net.d and /opt/cni/bin).
	CNI string
	// Proxy is "auto", "nftables", "iptables" or "none".
	Proxy string
	// Extra arguments, each name=value without dashes, for the upstream components.
	KubeletArgs, ProxyArgs []string
}
