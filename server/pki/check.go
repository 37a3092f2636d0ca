package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

// Kinds of a Certificate.
const (
	KindAuthority  = "authority"
	KindLeaf       = "certificate"
	KindKubeconfig = "kubeconfig"
	KindKey        = "key"
)

// Certificate is the result of Check for one certificate, kubeconfig or key.
type Certificate struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	File string `json:"file"`
	// Subject and Issuer are common names; for a kubeconfig, those of its client certificate.
	Subject string `json:"subject,omitempty"`
	Issuer  string `json:"issuer,omitempty"`
	// Expires is nil for files without expiry: mote's own authorities, keys.
	Expires *time.Time `json:"expires,omitempty"`
	// DaysLeft is the number of days until Expires, rounded down; negative after that.
	DaysLeft *int `json:"daysLeft,omitempty"`
	// Made is the time when the file of a key was written.
	Made *time.Time `json:"made,omitempty"`
	// Problems lists why it does not fit its purpose, one phrase each.
	Problems []string `json:"problems,omitempty"`
}

// Check checks all authorities, certificates, kubeconfigs and keys. It changes nothing and uses no
// network.
func (c Certificates) Check(now time.Time) ([]Certificate, error) {
	creds := c.credentials()
	if _, err := os.Stat(creds.Path("")); errors.Is(err, fs.ErrNotExist) {
		return nil, c.absent()
	} else if err != nil {
		return nil, err
	}
	k := &checker{Certificates: c, creds: creds, now: now, trusted: map[string][]*x509.Certificate{}}
	for _, name := range authorityNames() {
		k.checkAuthority(name)
	}
	for _, l := range c.leaves(creds) {
		k.checkLeaf(l)
	}
	node := func(name string) string { return filepath.Join(c.NodeDir, name+".kubeconfig") }
	k.checkKubeconfig("admin.kubeconfig", c.AdminKubeconfig)
	for _, name := range []string{"controller-manager", "scheduler"} {
		k.checkKubeconfig(name+".kubeconfig", creds.Kubeconfig(name))
	}
	for _, name := range []string{"kubelet", "kube-proxy"} {
		k.checkKubeconfig(name+".kubeconfig", node(name))
	}
	for _, path := range c.Copies {
		k.checkKubeconfig("copy of the kubeconfig", path)
	}
	k.checkTokenKey()
	return k.found, nil
}

type checker struct {
	Certificates
	creds   *Credentials
	now     time.Time
	trusted map[string][]*x509.Certificate // by authority, the present one first
	found   []Certificate
}

// checkAuthority checks an authority, and lists the previous ones that are still trusted.
func (k *checker) checkAuthority(name string) {
	base := k.creds.Path(name)
	found := Certificate{Name: name, Kind: KindAuthority, File: base + ".crt"}
	cert, problem := readCertificate(base + ".crt")
	if cert == nil {
		found.add(problem)
	} else {
		k.trusted[name] = []*x509.Certificate{cert}
		found.describe(cert, k.now)
		if !cert.IsCA {
			found.add("is no authority")
		}
		found.checkKey(base+".key", cert)
	}
	k.found = append(k.found, found)
	bundle, err := readOptional(base + bundleSuffix)
	if err != nil {
		return // unreadable for the same reason as the file beside it, which is reported
	}
	for _, old := range CertificatesIn(bundle) {
		if cert != nil && old.Equal(cert) {
			continue
		}
		k.trusted[name] = append(k.trusted[name], old)
		outgoing := Certificate{Name: name + " (outgoing)", Kind: KindAuthority, File: base + bundleSuffix}
		outgoing.describe(old, k.now)
		k.found = append(k.found, outgoing)
	}
}

func (k *checker) checkLeaf(l leafFile) {
	found := Certificate{Name: l.name, Kind: KindLeaf, File: l.base + ".crt"}
	cert, problem := readCertificate(l.base + ".crt")
	if cert == nil {
		found.add(problem)
	} else {
		found.describe(cert, k.now)
		found.checkKey(l.base+".key", cert)
		found.add(k.checkIssuer(cert, l.authority))
		found.checkSubject(cert, l.subject)
	}
	k.found = append(k.found, found)
}

func (k *checker) checkIssuer(cert *x509.Certificate, authority string) string {
	if len(k.trusted[authority]) == 0 {
		return "cannot be verified without " + authority
	}
	for _, ca := range k.trusted[authority] {
		if cert.CheckSignatureFrom(ca) == nil {
			return ""
		}
	}
	return "is not signed by " + authority
}

// checkKubeconfig checks the client certificate in a kubeconfig, and whether it trusts the
// apiserver.
func (k *checker) checkKubeconfig(name, path string) {
	found := Certificate{Name: name, Kind: KindKubeconfig, File: path}
	defer func() { k.found = append(k.found, found) }()
	certPEM, keyPEM, caPEM, err := readKubeconfig(path)
	if err != nil {
		found.add(err.Error())
		return
	}
	found.checkMode(path)
	cert, err := parseCertificate(certPEM)
	if err != nil {
		found.add("has no client certificate: " + err.Error())
		return
	}
	found.describe(cert, k.now)
	if key, err := parseKey(keyPEM); err != nil {
		found.add("has no client key: " + err.Error())
	} else if !keyMatches(key, cert) {
		found.add("key does not fit")
	}
	found.add(k.checkIssuer(cert, ClientAuthority))
	present := k.trusted[ServerAuthority]
	trusts := func(ca *x509.Certificate) bool { return len(present) > 0 && ca.Equal(present[0]) }
	if !slices.ContainsFunc(CertificatesIn(caPEM), trusts) {
		found.add("does not trust " + ServerAuthority)
	}
}

// readKubeconfig returns the certificate, key and authorities of the current context, from files or
// from the kubeconfig itself.
func readKubeconfig(path string) (certPEM, keyPEM, caPEM []byte, err error) {
	config, err := clientcmd.LoadFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil, errors.New("is missing")
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("cannot be read: %w", err)
	}
	if err := clientcmd.ResolveLocalPaths(config); err != nil {
		return nil, nil, nil, err
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil || config.AuthInfos[current.AuthInfo] == nil || config.Clusters[current.Cluster] == nil {
		return nil, nil, nil, errors.New("has no current context with a user and a cluster")
	}
	user, cluster := config.AuthInfos[current.AuthInfo], config.Clusters[current.Cluster]
	certPEM, certErr := dataOrFile(user.ClientCertificateData, user.ClientCertificate)
	keyPEM, keyErr := dataOrFile(user.ClientKeyData, user.ClientKey)
	caPEM, caErr := dataOrFile(cluster.CertificateAuthorityData, cluster.CertificateAuthority)
	return certPEM, keyPEM, caPEM, errors.Join(certErr, keyErr, caErr)
}

func dataOrFile(data []byte, path string) ([]byte, error) {
	if len(data) > 0 || path == "" {
		return data, nil
	}
	return os.ReadFile(path)
}

// checkTokenKey checks the key of service-account tokens, which has an age and no expiry.
func (k *checker) checkTokenKey() {
	path := k.creds.Path(tokenKey)
	found := Certificate{Name: "service-account", Kind: KindKey, File: path}
	defer func() { k.found = append(k.found, found) }()
	info, err := os.Stat(path)
	if err != nil {
		found.add(missing(err))
		return
	}
	made := info.ModTime().UTC()
	found.Made = &made
	found.checkMode(path)
	if _, err := parseKeyFile(path); err != nil {
		found.add(err.Error())
		return
	}
	public, err := readOptional(k.creds.Path(tokenPublicKeys))
	if err != nil {
		found.add(err.Error())
	}
	if count := strings.Count(string(public), "-----BEGIN"); count > 1 {
		old := Certificate{Name: "service-account (outgoing)", Kind: KindKey, File: k.creds.Path(tokenPublicKeys)}
		k.found = append(k.found, old)
	}
}

func (c *Certificate) add(problem string) {
	if problem != "" {
		c.Problems = append(c.Problems, problem)
	}
}

// describe fills in a certificate's holder, issuer and expiry.
func (c *Certificate) describe(cert *x509.Certificate, now time.Time) {
	c.Subject, c.Issuer = cert.Subject.CommonName, cert.Issuer.CommonName
	if now.Before(cert.NotBefore) {
		c.add("is not valid before " + cert.NotBefore.UTC().Format(time.RFC3339))
	}
	if cert.NotAfter.Equal(noEnd) {
		return
	}
	end := cert.NotAfter.UTC()
	left := end.Sub(now)
	days := int(math.Floor(left.Hours() / 24))
	if left < 0 {
		c.add("has expired")
	}
	c.Expires, c.DaysLeft = &end, &days
}

func (c *Certificate) checkKey(path string, cert *x509.Certificate) {
	key, err := parseKeyFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.add("key is missing")
		return
	case err != nil:
		c.add("key cannot be read: " + err.Error())
	case !keyMatches(key, cert):
		c.add("key does not fit")
	}
	c.checkMode(path)
}

func (c *Certificate) checkMode(path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		c.add(fmt.Sprintf("others may read %s (mode %04o)", filepath.Base(path), info.Mode().Perm()))
	}
}

// checkSubject requires the same common name, organisation and usage, and at least the SANs in s;
// the apiserver adds the machine's own.
func (c *Certificate) checkSubject(cert *x509.Certificate, s subject) {
	is := subjectOf(cert)
	if is.commonName != s.commonName || !slices.Equal(is.organizations, s.organizations) {
		c.add(fmt.Sprintf("is for %q %q and not for %q %q", is.commonName, is.organizations, s.commonName, s.organizations))
	}
	if !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{s.usage}) {
		c.add("is for another use")
	}
	var lacks []string
	for _, name := range s.names {
		if !slices.Contains(is.names, name) {
			lacks = append(lacks, name)
		}
	}
	for _, addr := range s.addrs {
		if !slices.Contains(is.addrs, addr) {
			lacks = append(lacks, addr.String())
		}
	}
	if len(lacks) > 0 {
		c.add("lacks the names " + strings.Join(lacks, ", "))
	}
}

func readCertificate(path string) (cert *x509.Certificate, problem string) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, missing(err)
	}
	if cert, err = parseCertificate(data); err != nil {
		return nil, "cannot be read: " + err.Error()
	}
	return cert, ""
}

func missing(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "is missing"
	}
	return "cannot be read: " + err.Error()
}
