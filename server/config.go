package server

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/server/pki"
)

// Config describes the control plane to run. Prepare copies, defaults and validates it once; it is
// never changed afterwards.
type Config struct {
	// DataDir holds the PKI, kubeconfigs and encryption key (<data-dir>/server). It is created with
	// mode 0700.
	DataDir string
	// AdminKubeconfig is the path of the admin kubeconfig, which is written with mode 0600.
	AdminKubeconfig string
	// ClusterName is the name of the cluster, its administrator and the context in kubeconfigs.
	// Default "mote".
	ClusterName string
	// KubeconfigCopy is the path of a copy of the admin kubeconfig, or empty. It may be anywhere;
	// mote keeps it up to date.
	KubeconfigCopy string
	// HasState is true when the datastore holds a cluster already. Prepare then fails with a
	// *LostKeysError where it would otherwise create that cluster's keys anew.
	HasState bool
	// DatastoreEndpoint is an etcd v3 endpoint, e.g. unix:///run/mote/sockets/datastore.sock, or
	// several URLs of one etcd, joined by commas.
	DatastoreEndpoint string
	// DatastoreCAFile verifies an etcd whose URLs are https; DatastoreCertFile and DatastoreKeyFile
	// are the client certificate for it and its key. All may be empty.
	DatastoreCAFile, DatastoreCertFile, DatastoreKeyFile string
	// ListenAddress and ListenPort are the address of kube-apiserver's HTTPS. Default 0.0.0.0:6443.
	// With a specific address other than loopback, mote's own components use that address too.
	ListenAddress netip.Addr
	ListenPort    int
	// AdvertiseAddress is the endpoint of the kubernetes Service: the bridge address.
	AdvertiseAddress netip.Addr
	// TLSSANs are further names and addresses for the apiserver's serving certificate.
	TLSSANs []string
	// ClusterCIDR and ServiceCIDR are the networks of pods and Services; ClusterDNS lies in
	// ServiceCIDR. Default 10.42.0.0/16 and 10.43.0.0/16. Each node gets a /24 of ClusterCIDR.
	ClusterCIDR, ServiceCIDR netip.Prefix
	// NodeRanges are the pod networks of the nodes that mote creates, by node name. Other nodes get
	// another /24 of ClusterCIDR.
	NodeRanges map[string]netip.Prefix
	// ClusterDomain is the DNS suffix of Services and part of the service-account issuer: changing
	// it invalidates the tokens in running pods. Default cluster.local.
	ClusterDomain string
	// MetricsAddress is the address on which the controller manager and the scheduler listen.
	// Default 127.0.0.1. On another address, users with RBAC permission may read their metrics.
	MetricsAddress netip.Addr
	// Budgets limit the resources that foreign clients may take from the process; nil limits each
	// port alone.
	Budgets *limit.Budgets
	// Memory is the most memory that the process should use, in bytes; it limits the requests. 0
	// keeps upstream's limits.
	Memory int64
	// Profile is ProfileDefault or ProfileCIS.
	Profile string
	// AuditPolicy is AuditOff, AuditDefault or the path of a policy file (audit.k8s.io/v1). Default
	// AuditOff, or AuditDefault with ProfileCIS.
	AuditPolicy string
	// Extra arguments for the upstream components, each name=value without dashes. One that mote
	// sets too replaces mote's value. A name that is given several times adds up where upstream's
	// flag does.
	APIServerArgs, ControllerManagerArgs, SchedulerArgs []string
}

// nodeCIDRBits is the prefix length of each node's share of ClusterCIDR. The agent's bridge uses
// the first share, 10.42.0.0/24 by default, so the two must agree.
const nodeCIDRBits = 24

func (c Config) withDefaults() Config {
	if !c.ListenAddress.IsValid() {
		c.ListenAddress = netip.IPv4Unspecified()
	}
	if !c.MetricsAddress.IsValid() {
		c.MetricsAddress = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if c.ListenPort == 0 {
		c.ListenPort = 6443
	}
	if !c.ClusterCIDR.IsValid() {
		c.ClusterCIDR = netip.MustParsePrefix("10.42.0.0/16")
	}
	if !c.ServiceCIDR.IsValid() {
		c.ServiceCIDR = netip.MustParsePrefix("10.43.0.0/16")
	}
	if c.ClusterName == "" {
		c.ClusterName = pki.DefaultClusterName
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.Profile == "" {
		c.Profile = ProfileDefault
	}
	if c.AuditPolicy == "" {
		c.AuditPolicy = AuditOff
		if c.Profile == ProfileCIS {
			c.AuditPolicy = AuditDefault
		}
	}
	return c
}

func (c Config) validate() error {
	if !filepath.IsAbs(c.DataDir) {
		return fmt.Errorf("data directory %q is not an absolute path", c.DataDir)
	}
	if !filepath.IsAbs(c.AdminKubeconfig) {
		return fmt.Errorf("administrator's kubeconfig %q is not an absolute path", c.AdminKubeconfig)
	}
	for endpoint := range strings.SplitSeq(c.DatastoreEndpoint, ",") {
		if u, err := url.Parse(endpoint); err != nil || u.Scheme == "" {
			return errors.New("datastore endpoint is not a URL")
		}
	}
	if c.Profile != ProfileDefault && c.Profile != ProfileCIS {
		return fmt.Errorf("profile %q is unknown; use %s or %s", c.Profile, ProfileDefault, ProfileCIS)
	}
	if c.AuditPolicy != AuditOff && c.AuditPolicy != AuditDefault && !filepath.IsAbs(c.AuditPolicy) {
		return fmt.Errorf("audit policy %q is not an absolute path", c.AuditPolicy)
	}
	if c.ListenPort < 1 || c.ListenPort > 65535 {
		return fmt.Errorf("listen port %d is not between 1 and 65535", c.ListenPort)
	}
	if !c.AdvertiseAddress.IsValid() || c.AdvertiseAddress.IsLoopback() || c.AdvertiseAddress.IsUnspecified() {
		return fmt.Errorf("advertise address %q cannot be reached from pods", c.AdvertiseAddress)
	}
	if c.ClusterCIDR.Masked() != c.ClusterCIDR || c.ServiceCIDR.Masked() != c.ServiceCIDR {
		return fmt.Errorf("cluster network %s or service network %s has host bits set", c.ClusterCIDR, c.ServiceCIDR)
	}
	if c.ClusterCIDR.Overlaps(c.ServiceCIDR) {
		return fmt.Errorf("cluster network %s and service network %s overlap", c.ClusterCIDR, c.ServiceCIDR)
	}
	if !c.ClusterCIDR.Addr().Is4() || !c.ServiceCIDR.Addr().Is4() {
		return errors.New("cluster and service networks must be IPv4")
	}
	if c.ClusterCIDR.Bits() > nodeCIDRBits {
		return fmt.Errorf("cluster network %s is smaller than the /%d that each node gets", c.ClusterCIDR, nodeCIDRBits)
	}
	for node, network := range c.NodeRanges {
		if network.Bits() != nodeCIDRBits || !c.ClusterCIDR.Contains(network.Addr()) {
			return fmt.Errorf("pod network %s of node %s is not a /%d of the cluster network %s", network, node, nodeCIDRBits, c.ClusterCIDR)
		}
	}
	if c.ServiceCIDR.Bits() > 28 {
		return fmt.Errorf("service network %s is smaller than /28", c.ServiceCIDR)
	}
	return nil
}

// url returns the URL at which mote's own components and the administrator on this machine reach
// the apiserver: on loopback, unless the apiserver listens only on another address.
func (c Config) url() string {
	addr := c.ListenAddress
	switch {
	case addr == netip.IPv4Unspecified():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case addr == netip.IPv6Unspecified():
		addr = netip.IPv6Loopback()
	}
	return "https://" + netip.AddrPortFrom(addr, uint16(c.ListenPort)).String()
}

// pki returns the configuration of the certificates and kubeconfigs.
func (c Config) pki() pki.Config {
	return pki.Config{
		URL: c.url(), ClusterName: c.ClusterName, ClusterDomain: c.ClusterDomain,
		ServiceAddress: c.apiServiceAddress(), AdvertiseAddress: c.AdvertiseAddress, ListenAddress: c.ListenAddress,
		TLSSANs: c.TLSSANs, AdminKubeconfig: c.AdminKubeconfig, KubeconfigCopy: c.KubeconfigCopy,
	}
}

// apiServiceAddress returns the kubernetes Service's address: the first of ServiceCIDR.
func (c Config) apiServiceAddress() netip.Addr { return c.ServiceCIDR.Addr().Next() }
