package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"

	"k8s.io/kubernetes/pkg/cluster/ports"

	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/limit"
)

// Values of Config.CNI and Config.Proxy.
const (
	CNIBridge     = "bridge"
	CNINone       = "none"
	ProxyAuto     = "auto"
	ProxyNFTables = "nftables"
	ProxyIPTables = "iptables"
	ProxyNone     = "none"
)

// Config says what node to run. It is validated once and never changed afterwards.
type Config struct {
	// DataDir holds containerd's root, CNI configuration and credentials (<data-dir>/agent).
	DataDir string
	// RunDir holds sockets, in a directory for root alone, and containerd's state, e.g. /run/mote. Mode 0711, for
	// pods in user namespaces.
	RunDir string
	// KubeletDir is the kubelet's root, default /var/lib/kubelet.
	KubeletDir string
	// PayloadDir holds the unpacked per-pod programs (agent/payload).
	PayloadDir string
	// ImagesDir is scanned for image archives at start.
	ImagesDir string
	// Server is the apiserver's URL, e.g. https://127.0.0.1:6443.
	Server string
	// Token is what a node without CredentialsDir's files will join with; "mote server" writes them itself.
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
	// ServiceCIDR is routed to the bridge, so that Services are reached from the node itself without
	// a default route. The zero value leaves that to the machine's routes.
	ServiceCIDR   netip.Prefix
	ClusterDNS    netip.Addr
	ClusterDomain string
	// Bridge is the name of the pod network's bridge, mote0.
	Bridge string
	// CNI is "bridge" (ours) or "none" (the user's, in /etc/cni/net.d and /opt/cni/bin).
	CNI string
	// Proxy is "auto", "nftables", "iptables" or "none".
	Proxy string
	// MetricsAddress is where kube-proxy serves its metrics, to anybody who reaches it. Default 127.0.0.1.
	MetricsAddress netip.Addr
	// Budgets bound what strangers may take from the process; nil bounds each port alone.
	Budgets *limit.Budgets
	// SeccompDefault gives containers that name no seccomp profile the runtime's and not none.
	SeccompDefault bool
	// Extra arguments, each name=value without dashes, for the upstream components.
	KubeletArgs, ProxyArgs []string
}

// maxInterfaceName is the longest name that the kernel gives a network interface (IFNAMSIZ less the
// terminating zero byte).
const maxInterfaceName = 15

// validate reports every field that cannot work, all at once.
func (c Config) validate() error {
	var errs []error
	for name, dir := range map[string]string{
		"DataDir": c.DataDir, "RunDir": c.RunDir, "KubeletDir": c.KubeletDir,
		"PayloadDir": c.PayloadDir, "ImagesDir": c.ImagesDir, "CredentialsDir": c.CredentialsDir,
	} {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("agent %s %q is not an absolute path", name, dir))
		}
	}
	if c.NodeName == "" {
		errs = append(errs, errors.New("agent NodeName is empty"))
	}
	if !c.NodeIP.IsValid() {
		errs = append(errs, errors.New("agent NodeIP is not set"))
	}
	if !slices.Contains([]string{CNIBridge, CNINone}, c.CNI) {
		errs = append(errs, fmt.Errorf("cni %q is unknown; use %s or %s", c.CNI, CNIBridge, CNINone))
	}
	if !slices.Contains([]string{ProxyAuto, ProxyNFTables, ProxyIPTables, ProxyNone}, c.Proxy) {
		errs = append(errs, fmt.Errorf("proxy %q is unknown; use %s, %s, %s or %s",
			c.Proxy, ProxyAuto, ProxyNFTables, ProxyIPTables, ProxyNone))
	}
	if c.CNI == CNIBridge {
		errs = append(errs, c.validateNetwork())
	}
	return errors.Join(errs...)
}

func (c Config) validateNetwork() error {
	switch {
	case c.Bridge == "" || len(c.Bridge) > maxInterfaceName:
		return fmt.Errorf("bridge name %q must have 1 to %d characters", c.Bridge, maxInterfaceName)
	case !c.PodCIDR.IsValid() || !c.PodCIDR.Addr().Is4() || c.PodCIDR.Bits() > 30:
		return fmt.Errorf("pod CIDR %s must be an IPv4 network of at least 4 addresses", c.PodCIDR)
	case !c.ClusterCIDR.Contains(c.PodCIDR.Addr()) || c.ClusterCIDR.Bits() > c.PodCIDR.Bits():
		return fmt.Errorf("pod CIDR %s is not inside the cluster CIDR %s", c.PodCIDR, c.ClusterCIDR)
	}
	return nil
}

// gateway is the bridge's address: the first of the node's pod network.
func (c Config) gateway() netip.Prefix {
	return netip.PrefixFrom(c.PodCIDR.Masked().Addr().Next(), c.PodCIDR.Bits())
}

// metricsAddress is where kube-proxy serves its metrics.
func (c Config) metricsAddress() netip.AddrPort {
	addr := c.MetricsAddress
	if !addr.IsValid() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(addr, ports.ProxyStatusPort)
}

// Files and directories that several parts of the package share.
func (c Config) data() layout.Data { return layout.Data(c.DataDir) }
func (c Config) run() layout.Run   { return layout.Run(c.RunDir) }
func (c Config) leases() string    { return filepath.Join(c.run().CNI(), "leases", networkName) }
func (c Config) cniCache() string  { return filepath.Join(c.run().CNI(), "cache") }
func (c Config) conflist() string  { return filepath.Join(c.data().CNIConfig(), "10-mote.conflist") }
func (c Config) credential(name string) string {
	return filepath.Join(c.CredentialsDir, name)
}

// AttachmentsDir is where the CNI library notes the results of its plugins, one file for each sandbox.
func AttachmentsDir(c Config) string { return filepath.Join(c.cniCache(), "results") }

// ContainerdSocket is the unix socket on which containerd answers CRI and its own API.
func ContainerdSocket(c Config) string {
	return c.run().ContainerdSocket()
}
