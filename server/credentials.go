package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// kubeletClientUser is who the apiserver is to a kubelet. It is bound to upstream's ClusterRole for
// that (bootstrap.go) and is no administrator.
const kubeletClientUser = "mote:apiserver-kubelet-client"

// frontProxyUser is who the apiserver is to an aggregated API server.
const frontProxyUser = "front-proxy-client"

// credentials is everything below <data-dir>/server that proves who is who.
type credentials struct {
	dir          string     // <data-dir>/server
	serverCA     *authority // of what serves: the apiserver, kubelets
	clientCA     *authority // of who calls the apiserver or a kubelet
	frontProxyCA *authority // of the apiserver towards aggregated API servers
}

// tls is a path below server/tls.
func (c *credentials) tls(name string) string { return filepath.Join(c.dir, "tls", name) }

// kubeconfig is the path of a component's own kubeconfig.
func (c *credentials) kubeconfig(component string) string {
	return filepath.Join(c.dir, component+".kubeconfig")
}

// load makes the directories, the authorities and the service-account key where they are missing.
func (c *credentials) load() (err error) {
	for _, dir := range []string{c.dir, c.tls("")} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	if c.serverCA, err = loadAuthority(c.tls("server-ca"), "mote server CA"); err != nil {
		return err
	}
	if c.clientCA, err = loadAuthority(c.tls("client-ca"), "mote client CA"); err != nil {
		return err
	}
	if c.frontProxyCA, err = loadAuthority(c.tls("front-proxy-ca"), "mote front proxy CA"); err != nil {
		return err
	}
	tokens := c.tls("service-account.key")
	_, err = readKey(tokens)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = makeKey(tokens)
		return err
	}
	if err != nil {
		return fmt.Errorf("%w; restore it from a backup, or remove it to make a new one, which invalidates "+
			"the tokens in all pods", err)
	}
	return nil
}

// renew makes the control plane's leaves and kubeconfigs and renews those that need it at now. It
// returns the names of the certificates that changed.
func (c *credentials) renew(cfg Config, now time.Time) ([]string, error) {
	client := func(user string, groups ...string) subject {
		return subject{commonName: user, organizations: groups, usage: x509.ExtKeyUsageClientAuth}
	}
	apiserver, err := servingSubject(cfg)
	if err != nil {
		return nil, err
	}
	localhost := subject{
		commonName: "localhost", usage: x509.ExtKeyUsageServerAuth,
		names: []string{"localhost"}, addrs: loopbackAddrs(),
	}
	// Who serves the metrics API in this process, as the apiserver calls a Service's backend.
	metricsServer := subject{
		commonName: "metrics-server", usage: x509.ExtKeyUsageServerAuth,
		names: []string{"metrics-server.kube-system.svc"},
	}
	leaves := []struct {
		name string
		ca   *authority
		subject
	}{
		{"apiserver", c.serverCA, apiserver},
		{"localhost", c.serverCA, localhost},
		{"metrics-server", c.serverCA, metricsServer},
		{"apiserver-kubelet-client", c.clientCA, client(kubeletClientUser)},
		{"front-proxy-client", c.frontProxyCA, client(frontProxyUser)},
		{"admin", c.clientCA, client("admin", "system:masters")},
		{"controller-manager", c.clientCA, client("system:kube-controller-manager")},
		{"scheduler", c.clientCA, client("system:kube-scheduler")},
	}
	var changed []string
	for _, leaf := range leaves {
		made, err := leaf.ca.ensureLeaf(c.tls(leaf.name), leaf.subject, now)
		if err != nil {
			return nil, err
		}
		if made {
			changed = append(changed, leaf.name)
		}
	}
	for _, component := range []string{"controller-manager", "scheduler"} {
		cluster := &clientcmdapi.Cluster{Server: cfg.url(), CertificateAuthority: "tls/server-ca.crt"}
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

// writeAdminKubeconfig writes the one kubeconfig that people copy elsewhere, hence with the
// certificates inside.
func (c *credentials) writeAdminKubeconfig(cfg Config) error {
	cert, err := os.ReadFile(c.tls("admin.crt"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(c.tls("admin.key"))
	if err != nil {
		return err
	}
	cluster := &clientcmdapi.Cluster{Server: cfg.url(), CertificateAuthorityData: c.serverCA.certPEM}
	user := &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	return writeKubeconfig(cfg.AdminKubeconfig, "mote", cluster, user)
}

// issueNode writes the credentials directory of docs/architecture.md, "The seam". The kubeconfigs
// name key files beside them instead of holding the keys, because clients reread only files.
func (c *credentials) issueNode(dir, nodeName string, addrs []netip.Addr, url string, now time.Time) ([]string, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	for name, ca := range map[string]*authority{"server-ca.crt": c.serverCA, "client-ca.crt": c.clientCA} {
		if err := updateFile(filepath.Join(dir, name), ca.certPEM, 0o644); err != nil {
			return nil, err
		}
	}
	node := "system:node:" + nodeName
	leaves := []struct {
		name string
		ca   *authority
		subject
	}{
		{"kubelet", c.serverCA, subject{
			commonName: node, organizations: []string{"system:nodes"}, usage: x509.ExtKeyUsageServerAuth,
			names: sortedNames([]string{nodeName, "localhost"}), addrs: sortedAddrs(append(loopbackAddrs(), addrs...)),
		}},
		{"kubelet-client", c.clientCA, subject{
			commonName: node, organizations: []string{"system:nodes"}, usage: x509.ExtKeyUsageClientAuth,
		}},
		{"kube-proxy", c.clientCA, subject{commonName: "system:kube-proxy", usage: x509.ExtKeyUsageClientAuth}},
	}
	var changed []string
	for _, leaf := range leaves {
		made, err := leaf.ca.ensureLeaf(filepath.Join(dir, leaf.name), leaf.subject, now)
		if err != nil {
			return nil, err
		}
		if made {
			changed = append(changed, leaf.name)
		}
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

func writeKubeconfig(path, name string, cluster *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) error {
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = cluster
	config.AuthInfos[name] = user
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	data, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return updateFile(path, data, 0o600)
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
	for _, san := range cfg.TLSSANs {
		if addr, err := netip.ParseAddr(san); err == nil {
			s.addrs = append(s.addrs, addr)
		} else {
			s.names = append(s.names, san)
		}
	}
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
