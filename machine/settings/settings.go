// Package settings holds everything that can be configured in mote, in one table.
//
// The table makes the flags, the MOTE_* environment variables, the keys of the configuration files,
// the help, the completion and docs/reference/settings.md. Nothing else in mote reads the
// environment or a configuration file for a setting.
//
// A value comes from, first found: flag, environment, file, default. Files are the one named by
// --config and then the *.yaml beside it in the directory of the same name plus ".d", sorted by
// name; a later file replaces what an earlier one said. A list is replaced as a whole, by a later
// file as by a flag; the key "name+" in a file appends to what the files before it said.
//
// To enter: Register flags on a command, then Load once when it runs. A Settings is complete and
// validated when Load returns it, and is never changed afterwards.
package settings

import (
	"fmt"
	"net/netip"

	"github.com/robfig/cron/v3"

	"github.com/mote-k8s/mote/internal/layout"
)

// Settings is what mote was told. The table documents each field.
type Settings struct {
	DataDir, RunDir, KubeletDir, ImageDir string
	WriteKubeconfig                       string

	// DatastoreEndpoint may hold a password: it must get into no output.
	DatastoreEndpoint                                    string
	DatastoreCAFile, DatastoreCertFile, DatastoreKeyFile string
	DatastoreQuota                                       int64 // bytes
	DatastoreVolatile                                    string

	HTTPSListenAddress netip.Addr
	HTTPSListenPort    int
	TLSSANs            []string
	ClusterName        string // from the node's name when empty

	NodeName               string     // the data directory's, or else the host's, when empty
	NodeIP                 netip.Addr // the bridge's when not valid
	NodeLabels, NodeTaints []string

	ClusterCIDR, ServiceCIDR netip.Prefix
	ClusterDNS               netip.Addr
	ClusterDomain            string
	CNI, Proxy               string
	LoadBalancerPool         netip.Prefix // the node's address for all Services when not valid

	// HTTPProxy and HTTPSProxy may hold a password: they must get into no output.
	HTTPProxy, HTTPSProxy string
	NoProxy               []string

	IngressHTTPPort, IngressHTTPSPort int

	SnapshotSchedule  cron.Schedule // nil is never
	SnapshotRetention int
	SnapshotDir       string
	// SnapshotRecipients are age public keys.
	SnapshotRecipients []string

	ManifestsDir string
	Disable      []string // addons

	Profile, AuditPolicy string
	ExposeMetrics        string // on or off

	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string
	KubeletArgs, ProxyArgs                              []string

	LogLevel, LogFormat string

	// Warnings are what is not right with the configuration files and refuses none of them.
	Warnings []string
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (s *Settings) Kubeconfig() string { return layout.Data(s.DataDir).AdminKubeconfig() }

// StatusSocket is the path of the socket on which a running mote tells its state.
func (s *Settings) StatusSocket() string { return layout.Run(s.RunDir).StatusSocket() }

// LogDir is where a running mote keeps the newest of its log.
func (s *Settings) LogDir() string { return layout.Run(s.RunDir).Logs() }

// DatastoreSocket is the path of the socket on which the datastore is served.
func (s *Settings) DatastoreSocket() string {
	return layout.Run(s.RunDir).DatastoreSocket()
}

// ContainerdSocket is the path of containerd's socket, which serves the CRI too.
func (s *Settings) ContainerdSocket() string {
	return layout.Run(s.RunDir).ContainerdSocket()
}

// PodCIDR is this node's part of the pods' network: the first 256 addresses of it.
func (s *Settings) PodCIDR() netip.Prefix { return netip.PrefixFrom(s.ClusterCIDR.Addr(), podBits) }

// BridgeAddress is the first pod address, which the bridge keeps.
func (s *Settings) BridgeAddress() netip.Addr { return s.PodCIDR().Addr().Next() }

// MetricsAddress is where components serve their metrics that have no other use of the port.
func (s *Settings) MetricsAddress() netip.Addr {
	switch {
	case s.ExposeMetrics != "on":
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case s.NodeIP.IsValid():
		return s.NodeIP
	}
	return s.BridgeAddress()
}

// podBits is the prefix length of one node's pod network, Kubernetes' default: 254 addresses are
// enough for the kubelet's default of 110 pods.
const podBits = 24

// dnsOffset is where in the Services' network the DNS address lies by default: the tenth address,
// as everywhere else in the Kubernetes world.
const dnsOffset = 10

// complete derives what was not set from what was, and checks what one value cannot tell alone.
func (s *Settings) complete() error {
	if s.ImageDir == "" {
		s.ImageDir = layout.Data(s.DataDir).Images()
	}
	if s.SnapshotDir == "" {
		s.SnapshotDir = layout.Data(s.DataDir).Snapshots()
	}
	if s.ManifestsDir == "" {
		s.ManifestsDir = layout.Data(s.DataDir).Manifests()
	}
	if !s.ClusterDNS.IsValid() {
		s.ClusterDNS = s.ServiceCIDR.Addr()
		for range dnsOffset {
			s.ClusterDNS = s.ClusterDNS.Next()
		}
	}
	switch {
	case !s.ServiceCIDR.Contains(s.ClusterDNS):
		return fmt.Errorf("cluster-dns %s is not in service-cidr %s", s.ClusterDNS, s.ServiceCIDR)
	case s.ClusterCIDR.Overlaps(s.ServiceCIDR):
		return fmt.Errorf("cluster-cidr %s and service-cidr %s overlap", s.ClusterCIDR, s.ServiceCIDR)
	case s.ClusterCIDR.Bits() > podBits:
		return fmt.Errorf("cluster-cidr %s is too small: at least a /%d is needed", s.ClusterCIDR, podBits)
	case s.IngressHTTPPort == s.IngressHTTPSPort:
		return fmt.Errorf("ingress-http-port and ingress-https-port are both %d", s.IngressHTTPPort)
	}
	return nil
}
