package server

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

	"github.com/mote-k8s/mote/internal/layout"
)

// kubeletClientUser is who the apiserver is to a kubelet. It is bound to upstream's ClusterRole for
// that (bootstrap.go) and is no administrator.
const kubeletClientUser = "mote:apiserver-kubelet-client"

// frontProxyUser is who the apiserver is to an aggregated API server.
const frontProxyUser = "front-proxy-client"

// credentials is everything below <data-dir>/server that proves who is who.
type credentials struct {
	data         layout.Data
	serverCA     *authority // of what serves: the apiserver, kubelets
	clientCA     *authority // of who calls the apiserver or a kubelet
	frontProxyCA *authority // of the apiserver towards aggregated API servers
}

// tls is a path below server/tls.
func (c *credentials) tls(name string) string { return filepath.Join(c.data.TLS(), name) }

// plan is the path of a plan for a change of the files.
func (c *credentials) plan(name string) string { return filepath.Join(c.data.Server(), name) }

// load makes the authorities and the service-account keys where they are missing, after makeDirs. Changes that were
// decided on before are carried out first.
func (c *credentials) load() (err error) {
	for _, plan := range []string{leavesPlan, authoritiesPlan} {
		if err := carryOut(string(c.data), c.plan(plan)); err != nil {
			return err
		}
	}
	for _, name := range authorityNames() {
		if *c.authorities()[name], err = loadAuthority(c.tls(name), commonNames()[name]); err != nil {
			return err
		}
	}
	return c.loadTokenKeys()
}

// makeDirs makes the folders of the files, which a lock on them needs too.
func (c *credentials) makeDirs() error {
	if err := makeDir(c.data.Server()); err != nil {
		return err
	}
	return makeDir(c.tls(""))
}

// Files of authorities, without extension.
const (
	serverAuthority     = "server-ca"
	clientAuthority     = "client-ca"
	frontProxyAuthority = "front-proxy-ca"
)

func authorityNames() []string {
	return []string{serverAuthority, clientAuthority, frontProxyAuthority}
}

func (c *credentials) authorities() map[string]**authority {
	return map[string]**authority{
		serverAuthority: &c.serverCA, clientAuthority: &c.clientCA, frontProxyAuthority: &c.frontProxyCA,
	}
}

// commonNames are what authorities are called.
func commonNames() map[string]string {
	return map[string]string{
		serverAuthority: "mote server CA", clientAuthority: "mote client CA", frontProxyAuthority: "mote front proxy CA",
	}
}

// leaf is a certificate that mote makes: server/tls/name.crt, or in a node's directory.
type leaf struct {
	name      string
	authority string
	subject
}

func clientSubject(user string, groups ...string) subject {
	return subject{commonName: user, organizations: groups, usage: x509.ExtKeyUsageClientAuth}
}

// controlPlaneLeaves are those in server/tls; apiserver is what the apiserver's own says.
func controlPlaneLeaves(apiserver subject) []leaf {
	localhost := subject{
		commonName: "localhost", usage: x509.ExtKeyUsageServerAuth,
		names: []string{"localhost"}, addrs: loopbackAddrs(),
	}
	// Who serves the metrics API in this process, as the apiserver calls a Service's backend.
	metricsServer := subject{
		commonName: "metrics-server", usage: x509.ExtKeyUsageServerAuth,
		names: []string{"metrics-server.kube-system.svc"},
	}
	return []leaf{
		{"apiserver", serverAuthority, apiserver},
		{"localhost", serverAuthority, localhost},
		{"metrics-server", serverAuthority, metricsServer},
		{"apiserver-kubelet-client", clientAuthority, clientSubject(kubeletClientUser)},
		{"front-proxy-client", frontProxyAuthority, clientSubject(frontProxyUser)},
		{"admin", clientAuthority, clientSubject("admin", "system:masters")},
		// A user of their own, so that an audit log and priority levels distinguish addons from people.
		{"addons", clientAuthority, clientSubject("mote:addons", "system:masters")},
		{"controller-manager", clientAuthority, clientSubject("system:kube-controller-manager")},
		{"scheduler", clientAuthority, clientSubject("system:kube-scheduler")},
	}
}

// nodeLeaves are those in a node's directory.
func nodeLeaves(nodeName string, addrs []netip.Addr) []leaf {
	node := "system:node:" + nodeName
	return []leaf{
		{"kubelet", serverAuthority, subject{
			commonName: node, organizations: []string{"system:nodes"}, usage: x509.ExtKeyUsageServerAuth,
			names: sortedNames([]string{nodeName, "localhost"}), addrs: sortedAddrs(append(loopbackAddrs(), addrs...)),
		}},
		{"kubelet-client", clientAuthority, clientSubject(node, "system:nodes")},
		{"kube-proxy", clientAuthority, clientSubject("system:kube-proxy")},
	}
}

// ensure makes or renews leaves in dir and returns the names of those that changed.
func (c *credentials) ensure(dir string, leaves []leaf, now time.Time) ([]string, error) {
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

// renew makes the control plane's leaves and kubeconfigs and renews those that need it at now. It
// returns the names of the certificates that changed.
func (c *credentials) renew(cfg Config, now time.Time) ([]string, error) {
	apiserver, err := servingSubject(cfg)
	if err != nil {
		return nil, err
	}
	changed, err := c.ensure(c.tls(""), controlPlaneLeaves(apiserver), now)
	if err != nil {
		return nil, err
	}
	for _, component := range []string{"controller-manager", "scheduler"} {
		cluster := &clientcmdapi.Cluster{Server: cfg.url(), CertificateAuthority: "tls/" + serverAuthority + bundleSuffix}
		user := &clientcmdapi.AuthInfo{
			ClientCertificate: "tls/" + component + ".crt",
			ClientKey:         "tls/" + component + ".key",
		}
		if err := writeKubeconfig(c.kubeconfig(component), component, cluster, user); err != nil {
			return nil, err
		}
	}
	return changed, c.writeAdminKubeconfig(cfg)
}

// issueNode writes the credentials directory of docs/architecture.md, "The seam". The kubeconfigs
// name key files beside them instead of holding the keys, because clients reread only files.
func (c *credentials) issueNode(dir, nodeName string, addrs []netip.Addr, url string, now time.Time) ([]string, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	for name, ca := range map[string]*authority{"server-ca.crt": c.serverCA, "client-ca.crt": c.clientCA} {
		if err := updateFile(filepath.Join(dir, name), ca.trusted, 0o644); err != nil {
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

// servingSubject is what the apiserver's serving certificate says: every name and address that
// somebody may call it by, the machine's present addresses included.
func servingSubject(cfg Config) (subject, error) {
	s := subject{
		commonName: "kube-apiserver", usage: x509.ExtKeyUsageServerAuth,
		names: []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + cfg.ClusterDomain, "localhost",
		},
		addrs: append(loopbackAddrs(), cfg.apiServiceAddress(), cfg.AdvertiseAddress),
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

// hostAddrs is the machine's addresses but link-local ones, which come and go with every pod's veth
// and cannot be called without a zone anyway.
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
