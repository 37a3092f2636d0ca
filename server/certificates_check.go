package server

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

// Kinds of what Check finds.
const (
	KindAuthority  = "authority"
	KindLeaf       = "certificate"
	KindKubeconfig = "kubeconfig"
	KindKey        = "key"
)

// Certificate is what Check found out about one certificate, kubeconfig or key.
type Certificate struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
	File string `json:"file"`
	// Subject and Issuer are common names; a kubeconfig's are those of the client certificate in it.
	Subject string `json:"subject,omitempty"`
	Issuer  string `json:"issuer,omitempty"`
	// Expires is nil for what has no end: mote's own authorities, keys.
	Expires *time.Time `json:"expires,omitempty"`
	// DaysLeft until Expires, rounded down; negative when it has passed.
	DaysLeft *int `json:"daysLeft,omitempty"`
	// Made is when a key's file was written.
	Made *time.Time `json:"made,omitempty"`
	// Problems keep it from being good for its purpose, one phrase each.
	Problems []string `json:"problems,omitempty"`
}

// Check judges everything that proves who is who. It changes nothing and asks nobody.
func (c Certificates) Check(now time.Time) ([]Certificate, error) {
	creds := c.credentials()
	if _, err := os.Stat(creds.tls("")); errors.Is(err, fs.ErrNotExist) {
		return nil, c.absent()
	} else if err != nil {
		return nil, err
	}
	k := &checker{Certificates: c, creds: creds, now: now, trusted: map[string][]*x509.Certificate{}}
	for _, name := range authorityNames() {
		k.authority(name)
	}
	for _, l := range c.leaves(creds) {
		k.leaf(l)
	}
	node := func(name string) string { return filepath.Join(c.NodeDir, name+".kubeconfig") }
	k.kubeconfig("admin.kubeconfig", c.AdminKubeconfig)
	for _, name := range []string{"controller-manager", "scheduler"} {
		k.kubeconfig(name+".kubeconfig", creds.kubeconfig(name))
	}
	for _, name := range []string{"kubelet", "kube-proxy"} {
		k.kubeconfig(name+".kubeconfig", node(name))
	}
	for _, path := range c.Copies {
		k.kubeconfig("copy of the kubeconfig", path)
	}
	k.key()
	return k.found, nil
}

type checker struct {
	Certificates
	creds   *credentials
	now     time.Time
	trusted map[string][]*x509.Certificate // by authority, the present one first
	found   []Certificate
}

// authority judges an authority, and lists the ones before it that are still trusted.
func (k *checker) authority(name string) {
	base := k.creds.tls(name)
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
		found.judgeKey(base+".key", cert)
	}
	k.found = append(k.found, found)
	bundle, err := readOptional(base + bundleSuffix)
	if err != nil {
		return // as unreadable as its neighbour, which has been told of
	}
	for _, old := range certificatesIn(bundle) {
		if cert != nil && old.Equal(cert) {
			continue
		}
		k.trusted[name] = append(k.trusted[name], old)
		outgoing := Certificate{Name: name + " (outgoing)", Kind: KindAuthority, File: base + bundleSuffix}
		outgoing.describe(old, k.now)
		k.found = append(k.found, outgoing)
	}
}

func (k *checker) leaf(l leafFile) {
	found := Certificate{Name: l.name, Kind: KindLeaf, File: l.base + ".crt"}
	cert, problem := readCertificate(l.base + ".crt")
	if cert == nil {
		found.add(problem)
	} else {
		found.describe(cert, k.now)
		found.judgeKey(l.base+".key", cert)
		found.add(k.judgeIssuer(cert, l.authority))
		found.judgeSubject(cert, l.subject)
	}
	k.found = append(k.found, found)
}

func (k *checker) judgeIssuer(cert *x509.Certificate, authority string) string {
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

// kubeconfig judges the client certificate in a kubeconfig, and whether it trusts the apiserver.
func (k *checker) kubeconfig(name, path string) {
	found := Certificate{Name: name, Kind: KindKubeconfig, File: path}
	defer func() { k.found = append(k.found, found) }()
	certPEM, keyPEM, caPEM, err := readKubeconfig(path)
	if err != nil {
		found.add(err.Error())
		return
	}
	found.judgeMode(path)
	cert, err := parseCertificate(certPEM)
	if err != nil {
		found.add("has no client certificate: " + err.Error())
		return
	}
	found.describe(cert, k.now)
	if key, err := parseKey(keyPEM); err != nil {
		found.add("has no client key: " + err.Error())
	} else if !keyFits(key, cert) {
		found.add("key does not fit")
	}
	found.add(k.judgeIssuer(cert, clientAuthority))
	present := k.trusted[serverAuthority]
	trusts := func(ca *x509.Certificate) bool { return len(present) > 0 && ca.Equal(present[0]) }
	if !slices.ContainsFunc(certificatesIn(caPEM), trusts) {
		found.add("does not trust " + serverAuthority)
	}
}

// readKubeconfig returns what the current context's user and cluster have, from files or from the kubeconfig itself.
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

// key judges the key of service-account tokens, which has an age and no end.
func (k *checker) key() {
	path := k.creds.tls(tokenKey)
	found := Certificate{Name: "service-account", Kind: KindKey, File: path}
	defer func() { k.found = append(k.found, found) }()
	info, err := os.Stat(path)
	if err != nil {
		found.add(missing(err))
		return
	}
	made := info.ModTime().UTC()
	found.Made = &made
	found.judgeMode(path)
	if _, err := parseKeyFile(path); err != nil {
		found.add(err.Error())
		return
	}
	public, err := readOptional(k.creds.tls(tokenPublicKeys))
	if err != nil {
		found.add(err.Error())
	}
	if count := strings.Count(string(public), "-----BEGIN"); count > 1 {
		old := Certificate{Name: "service-account (outgoing)", Kind: KindKey, File: k.creds.tls(tokenPublicKeys)}
		k.found = append(k.found, old)
	}
}

func (c *Certificate) add(problem string) {
	if problem != "" {
		c.Problems = append(c.Problems, problem)
	}
}

// describe tells who a certificate is for, from whom and until when.
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

func (c *Certificate) judgeKey(path string, cert *x509.Certificate) {
	key, err := parseKeyFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.add("key is missing")
		return
	case err != nil:
		c.add("key cannot be read: " + err.Error())
	case !keyFits(key, cert):
		c.add("key does not fit")
	}
	c.judgeMode(path)
}

func (c *Certificate) judgeMode(path string) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
		c.add(fmt.Sprintf("others may read %s (mode %04o)", filepath.Base(path), info.Mode().Perm()))
	}
}

// judgeSubject wants who and what for exactly, of the names at least those of s: a server adds its machine's.
func (c *Certificate) judgeSubject(cert *x509.Certificate, s subject) {
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
