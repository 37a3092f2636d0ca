package pki

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/layout"
)

// KubeletClientUser is the apiserver's user at a kubelet. It is bound to upstream's ClusterRole for
// that and is no administrator.
const KubeletClientUser = "mote:apiserver-kubelet-client"

// FrontProxyUser is the apiserver's user at an aggregated API server.
const FrontProxyUser = "front-proxy-client"

// Credentials holds the keys and certificates below <data-dir>/server, which prove the identities
// in a cluster.
type Credentials struct {
	data         layout.Data
	serverCA     *authority // signs servers: the apiserver, kubelets
	clientCA     *authority // signs clients of the apiserver and of kubelets
	frontProxyCA *authority // signs the apiserver as a client of aggregated API servers
}

// New returns the credentials of a data directory. It reads and creates no files.
func New(data layout.Data) *Credentials { return &Credentials{data: data} }

// Path returns a path below server/tls.
func (c *Credentials) Path(name string) string { return filepath.Join(c.data.TLS(), name) }

// Bundle returns the path of the bundle that verifies the certificates of authority: its own
// certificate and, during a rotation, that of the previous one.
func (c *Credentials) Bundle(authority string) string { return c.Path(authority + bundleSuffix) }

// TokenKey returns the path of the key that signs service-account tokens.
func (c *Credentials) TokenKey() string { return c.Path(tokenKey) }

// TokenPublicKeys returns the path of the keys that verify service-account tokens.
func (c *Credentials) TokenPublicKeys() string { return c.Path(tokenPublicKeys) }

// ServerAuthorities returns the authorities that verify the apiserver and kubelets, in PEM, as they
// were loaded.
func (c *Credentials) ServerAuthorities() []byte { return c.serverCA.trusted }

// Files are the paths of one holder's certificate, its private key, and the authorities that verify
// its peers, all in PEM. Renewals change the contents of the files.
type Files struct{ CAFile, CertFile, KeyFile string }

// Admin returns the paths of the administrator's credentials. They give full control of the
// cluster.
func Admin(data layout.Data) Files { return files(data, "admin") }

// Addons returns the paths of the addons' credentials. They have the administrator's permissions,
// and a user of their own.
func Addons(data layout.Data) Files { return files(data, "addons") }

// MetricsServer returns the paths of the serving certificate of the metrics API.
func MetricsServer(data layout.Data) Files { return files(data, "metrics-server") }

func files(data layout.Data, leaf string) Files {
	c := New(data)
	return Files{CAFile: c.Bundle(ServerAuthority), CertFile: c.Path(leaf + ".crt"), KeyFile: c.Path(leaf + ".key")}
}

// plan returns the path of a plan for a change of the files.
func (c *Credentials) plan(name string) string { return filepath.Join(c.data.Server(), name) }

// Load reads the authorities and the service-account keys, and creates the missing ones. It first
// applies changes that were planned before. MakeDirs must have been called.
func (c *Credentials) Load() (err error) {
	for _, plan := range []string{leavesPlan, authoritiesPlan} {
		if err := carryOut(string(c.data), c.plan(plan)); err != nil {
			return err
		}
	}
	for _, name := range authorityNames() {
		if *c.authorities()[name], err = loadAuthority(c.Path(name), commonNames()[name]); err != nil {
			return err
		}
	}
	return c.loadTokenKeys()
}

// MakeDirs creates the directories of the files. Lock needs one of them.
func (c *Credentials) MakeDirs() error {
	if err := durable.MakeDir(c.data.Server()); err != nil {
		return err
	}
	return durable.MakeDir(c.Path(""))
}

// Files of authorities, without extension.
const (
	ServerAuthority     = "server-ca"
	ClientAuthority     = "client-ca"
	FrontProxyAuthority = "front-proxy-ca"
)

func authorityNames() []string {
	return []string{ServerAuthority, ClientAuthority, FrontProxyAuthority}
}

func (c *Credentials) authorities() map[string]**authority {
	return map[string]**authority{
		ServerAuthority: &c.serverCA, ClientAuthority: &c.clientCA, FrontProxyAuthority: &c.frontProxyCA,
	}
}

// commonNames returns the common names of authorities.
func commonNames() map[string]string {
	return map[string]string{
		ServerAuthority: "mote server CA", ClientAuthority: "mote client CA", FrontProxyAuthority: "mote front proxy CA",
	}
}

// leaf is a certificate that mote creates: server/tls/name.crt, or in the directory of a node.
type leaf struct {
	name      string
	authority string
	subject
}

func clientSubject(user string, groups ...string) subject {
	return subject{commonName: user, organizations: groups, usage: x509.ExtKeyUsageClientAuth}
}

// controlPlaneLeaves returns the leaves in server/tls. apiserver is the subject of the apiserver's
// serving certificate.
func controlPlaneLeaves(apiserver subject) []leaf {
	localhost := subject{
		commonName: "localhost", usage: x509.ExtKeyUsageServerAuth,
		names: []string{"localhost"}, addrs: loopbackAddrs(),
	}
	// The server of the metrics API in this process, under the name by which the apiserver calls a
	// Service's backend.
	metricsServer := subject{
		commonName: "metrics-server", usage: x509.ExtKeyUsageServerAuth,
		names: []string{"metrics-server.kube-system.svc"},
	}
	return []leaf{
		{"apiserver", ServerAuthority, apiserver},
		{"localhost", ServerAuthority, localhost},
		{"metrics-server", ServerAuthority, metricsServer},
		{"apiserver-kubelet-client", ClientAuthority, clientSubject(KubeletClientUser)},
		{"front-proxy-client", FrontProxyAuthority, clientSubject(FrontProxyUser)},
		{"admin", ClientAuthority, clientSubject("admin", "system:masters")},
		// A user of its own, so that an audit log and priority levels distinguish addons from
		// people.
		{"addons", ClientAuthority, clientSubject("mote:addons", "system:masters")},
		{"controller-manager", ClientAuthority, clientSubject("system:kube-controller-manager")},
		{"scheduler", ClientAuthority, clientSubject("system:kube-scheduler")},
	}
}

// nodeLeaves returns the leaves in the directory of a node.
func nodeLeaves(nodeName string, addrs []netip.Addr) []leaf {
	node := "system:node:" + nodeName
	return []leaf{
		{"kubelet", ServerAuthority, subject{
			commonName: node, organizations: []string{"system:nodes"}, usage: x509.ExtKeyUsageServerAuth,
			names: sortedNames([]string{nodeName, "localhost"}), addrs: sortedAddrs(append(loopbackAddrs(), addrs...)),
		}},
		{"kubelet-client", ClientAuthority, clientSubject(node, "system:nodes")},
		{"kube-proxy", ClientAuthority, clientSubject("system:kube-proxy")},
	}
}

// ensure creates or renews leaves in dir and returns the names of those that changed.
func (c *Credentials) ensure(dir string, leaves []leaf, now time.Time) ([]string, error) {
	var changed []string
	for _, l := range leaves {
		made, err := (*c.authorities()[l.authority]).ensureLeaf(filepath.Join(dir, l.name), l.subject, now)
		if err != nil {
			return nil, err
		}
		if made {
			changed = append(changed, l.name)
		}
	}
	return changed, nil
}

// Renew creates the leaves and kubeconfigs of the control plane, and renews those that need it at
// now. It returns the names of the certificates that changed.
func (c *Credentials) Renew(cfg Config, now time.Time) ([]string, error) {
	apiserver, err := servingSubject(cfg)
	if err != nil {
		return nil, err
	}
	changed, err := c.ensure(c.Path(""), controlPlaneLeaves(apiserver), now)
	if err != nil {
		return nil, err
	}
	for _, component := range []string{"controller-manager", "scheduler"} {
		cluster := &clientcmdapi.Cluster{Server: cfg.URL, CertificateAuthority: "tls/" + ServerAuthority + bundleSuffix}
		user := &clientcmdapi.AuthInfo{
			ClientCertificate: "tls/" + component + ".crt",
			ClientKey:         "tls/" + component + ".key",
		}
		if err := writeKubeconfig(c.Kubeconfig(component), component, cluster, user); err != nil {
			return nil, err
		}
	}
	return changed, c.writeAdminKubeconfig(cfg)
}

// IssueNode writes the credentials directory of a node (docs/architecture.md, "The seam"). addrs
// are the node's addresses, url is the apiserver's URL. The kubeconfigs refer to key files beside
// them and do not contain the keys, because clients only read files again. It returns the names of
// the certificates that changed.
func (c *Credentials) IssueNode(dir, nodeName string, addrs []netip.Addr, url string, now time.Time) ([]string, error) {
	if err := durable.MakeDir(dir); err != nil {
		return nil, err
	}
	for name, ca := range map[string]*authority{"server-ca.crt": c.serverCA, "client-ca.crt": c.clientCA} {
		if err := durable.UpdateFile(filepath.Join(dir, name), ca.trusted, 0o644); err != nil {
			return nil, err
		}
	}
	changed, err := c.ensure(dir, nodeLeaves(nodeName, addrs), now)
	if err != nil {
		return nil, err
	}
	for kubeconfig, pair := range map[string]string{"kubelet": "kubelet-client", "kube-proxy": "kube-proxy"} {
		cluster := &clientcmdapi.Cluster{Server: url, CertificateAuthority: "server-ca.crt"}
		user := &clientcmdapi.AuthInfo{ClientCertificate: pair + ".crt", ClientKey: pair + ".key"}
		if err := writeKubeconfig(filepath.Join(dir, kubeconfig+".kubeconfig"), kubeconfig, cluster, user); err != nil {
			return nil, err
		}
	}
	return changed, nil
}

// servingSubject returns the subject of the apiserver's serving certificate: every name and address
// at which clients may call it, including the machine's present addresses.
func servingSubject(cfg Config) (subject, error) {
	s := subject{
		commonName: "kube-apiserver", usage: x509.ExtKeyUsageServerAuth,
		names: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + cfg.ClusterDomain, "localhost",
		},
		addrs: append(loopbackAddrs(), cfg.ServiceAddress, cfg.AdvertiseAddress),
	}
	if !cfg.ListenAddress.IsUnspecified() {
		s.addrs = append(s.addrs, cfg.ListenAddress)
	}
	if hostname, err := os.Hostname(); err == nil && hostname != "" {
		s.names = append(s.names, hostname)
	}
	s.add(cfg.TLSSANs)
	host, err := hostAddrs()
	if err != nil {
		return subject{}, err
	}
	s.names, s.addrs = sortedNames(s.names), sortedAddrs(append(s.addrs, host...))
	return s, nil
}

// hostAddrs returns the machine's addresses except link-local ones, which appear and disappear with
// every pod's veth and cannot be called without a zone anyway.
func hostAddrs() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the machine's addresses: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range found {
		prefix, err := netip.ParsePrefix(a.String())
		if err == nil && !prefix.Addr().IsLinkLocalUnicast() {
			addrs = append(addrs, prefix.Addr().Unmap())
		}
	}
	return addrs, nil
}

func loopbackAddrs() []netip.Addr {
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
}

func sortedAddrs(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

func sortedNames(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}
