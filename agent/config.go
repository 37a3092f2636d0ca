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

// These are the values of Config.CNI and Config.Proxy.
const (
	CNIBridge     = "bridge"
	CNINone       = "none"
	ProxyAuto     = "auto"
	ProxyNFTables = "nftables"
	ProxyIPTables = "iptables"
	ProxyNone     = "none"
)

// Config describes the node to run. It is validated once and never changed afterwards.
type Config struct {
	// DataDir is the data directory. Its directory agent holds containerd's root, CNI configuration
	// and credentials.
	DataDir string
	// RunDir is the run directory, e.g. /run/mote. It holds sockets, in a directory for root alone,
	// and containerd's state. Its mode is 0711, for pods in user namespaces.
	RunDir string
	// KubeletDir is the kubelet's root directory, by default /var/lib/kubelet.
	KubeletDir string
	// PayloadDir holds the unpacked per-pod programs (agent/payload).
	PayloadDir string
	// ImagesDir is the directory with archives to import. mote scans it at the start, and imports
	// archives that are added later.
	ImagesDir string
	// Server is the apiserver's URL, e.g. https://127.0.0.1:6443.
	Server string
	// Token is the credential with which a node that lacks the files in CredentialsDir will join.
	// "mote server" writes these files itself.
	Token string
	// CredentialsDir holds the files that docs/architecture.md lists in "The seam".
	CredentialsDir string
	// NodeName and NodeIP identify the node. NodeIP is the bridge address by default.
	NodeName string
	NodeIP   netip.Addr
	// NodeLabels and NodeTaints are registered with the node, as key=value and key=value:effect.
	NodeLabels, NodeTaints []string
	// ClusterCIDR is the network of all pods. PodCIDR is this node's part of it; its first address
	// is the bridge's.
	ClusterCIDR, PodCIDR netip.Prefix
	// ServiceCIDR is routed to the bridge, so that the node itself reaches Services without a
	// default route. The zero value adds no route and relies on those of the machine.
	ServiceCIDR   netip.Prefix
	ClusterDNS    netip.Addr
	ClusterDomain string
	// Bridge is the name of the pod network's bridge, mote0.
	Bridge string
	// CNI is "bridge" (mote's own) or "none" (the user's, in /etc/cni/net.d and /opt/cni/bin).
	CNI string
	// Proxy is "auto", "nftables", "iptables" or "none".
	Proxy string
	// MetricsAddress is the address on which kube-proxy serves its metrics, to every client that
	// reaches it. The default is 127.0.0.1.
	MetricsAddress netip.Addr
	// Budgets bound the resources of the process that clients from outside may take. With nil, each
	// port has a budget of its own only.
	Budgets *limit.Budgets
	// SeccompDefault gives the runtime's seccomp profile to containers that name no profile.
	// Without it they run unconfined.
	SeccompDefault bool
	// KubeletArgs and ProxyArgs are extra arguments for the upstream components, each name=value
	// without dashes.
	KubeletArgs, ProxyArgs []string
}

// maxInterfaceName is the length of the longest name that the kernel allows for a network interface
// (IFNAMSIZ less the terminating zero byte).
const maxInterfaceName = 15

// validate returns one error that names every invalid field.
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

// gateway returns the bridge's address: the first one of the node's pod network.
func (c Config) gateway() netip.Prefix {
	return netip.PrefixFrom(c.PodCIDR.Masked().Addr().Next(), c.PodCIDR.Bits())
}

// metricsAddress returns the address on which kube-proxy serves its metrics.
func (c Config) metricsAddress() netip.AddrPort {
	addr := c.MetricsAddress
	if !addr.IsValid() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(addr, ports.ProxyStatusPort)
}

// These methods name files and directories that several files of the package share.
func (c Config) data() layout.Data { return layout.Data(c.DataDir) }
func (c Config) run() layout.Run   { return layout.Run(c.RunDir) }
func (c Config) leases() string    { return filepath.Join(c.run().CNI(), "leases", networkName) }
func (c Config) cniCache() string  { return filepath.Join(c.run().CNI(), "cache") }
func (c Config) conflist() string  { return filepath.Join(c.data().CNIConfig(), "10-mote.conflist") }
func (c Config) credential(name string) string {
	return filepath.Join(c.CredentialsDir, name)
}

// AttachmentsDir returns the directory in which the CNI library records the results of its plugins,
// one file for each pod.
func AttachmentsDir(c Config) string { return filepath.Join(c.cniCache(), "results") }

// ContainerdSocket returns the path of the unix socket on which containerd serves CRI and its own
// API.
func ContainerdSocket(c Config) string {
	return c.run().ContainerdSocket()
}
