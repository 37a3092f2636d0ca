// Package settings holds every setting of mote, in one table.
//
// The table generates the flags, the MOTE_* environment variables, the keys of the configuration
// files, the help, the completion and docs/reference/settings.md. Nothing else in mote reads the
// environment or a configuration file for a setting.
//
// The first source that sets a value wins: flag, environment, file, default. The files are the one
// named by --config and then the *.yaml beside it in the directory of the same name plus ".d",
// sorted by name. A later file replaces the values of an earlier one. A list is replaced as a
// whole, by a later file and by a flag; the key "name+" in a file appends to the list of the files
// before it.
//
// To use the package, Register flags on a command, then Load once when it runs. A Settings is
// complete and validated when Load returns it, and is never changed afterwards.
package settings

import (
	"fmt"
	"net/netip"

	"github.com/robfig/cron/v3"

	"github.com/mote-k8s/mote/internal/layout"
)

// Settings holds the value of every setting. The table documents each field.
type Settings struct {
	DataDir, RunDir, KubeletDir, ImageDir string
	WriteKubeconfig                       string

	// DatastoreEndpoint may contain a password: no output may show it.
	DatastoreEndpoint                                    string
	DatastoreCAFile, DatastoreCertFile, DatastoreKeyFile string
	DatastoreQuota                                       int64 // bytes
	DatastoreVolatile                                    string

	HTTPSListenAddress netip.Addr
	HTTPSListenPort    int
	TLSSANs            []string
	ClusterName        string // when empty: derived from the node's name

	NodeName               string     // when empty: the data directory's, or else the host's
	NodeIP                 netip.Addr // when not valid: the bridge's
	NodeLabels, NodeTaints []string

	ClusterCIDR, ServiceCIDR netip.Prefix
	ClusterDNS               netip.Addr
	ClusterDomain            string
	CNI, Proxy               string
	LoadBalancerPool         netip.Prefix // when not valid: the node's address, for all Services

	// HTTPProxy and HTTPSProxy may contain a password: no output may show it.
	HTTPProxy, HTTPSProxy string
	NoProxy               []string

	IngressHTTPPort, IngressHTTPSPort int

	SnapshotSchedule  cron.Schedule // nil means never
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

	// Warnings describe faults of the configuration files for which none of them is refused.
	Warnings []string
}

// Kubeconfig returns the path of the admin kubeconfig.
func (s *Settings) Kubeconfig() string { return layout.Data(s.DataDir).AdminKubeconfig() }

// StatusSocket returns the path of the socket on which a running mote reports its status.
func (s *Settings) StatusSocket() string { return layout.Run(s.RunDir).StatusSocket() }

// LogDir returns the directory in which a running mote keeps its newest log records.
func (s *Settings) LogDir() string { return layout.Run(s.RunDir).Logs() }

// DatastoreSocket returns the path of the socket on which the datastore is served.
func (s *Settings) DatastoreSocket() string {
	return layout.Run(s.RunDir).DatastoreSocket()
}

// ContainerdSocket returns the path of containerd's socket, which serves the CRI too.
func (s *Settings) ContainerdSocket() string {
	return layout.Run(s.RunDir).ContainerdSocket()
}

// PodCIDR returns this node's share of the pod network: its first 256 addresses.
func (s *Settings) PodCIDR() netip.Prefix { return netip.PrefixFrom(s.ClusterCIDR.Addr(), podBits) }

// BridgeAddress returns the first pod address, which belongs to the bridge.
func (s *Settings) BridgeAddress() netip.Addr { return s.PodCIDR().Addr().Next() }

// MetricsAddress returns the address for the metrics of components whose port serves nothing else.
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

// dnsOffset is the default position of the DNS address in the Services' network: the tenth address,
// as everywhere else in the Kubernetes world.
const dnsOffset = 10

// complete derives the settings that are not set from the others, and makes the checks that need
// several values.
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
