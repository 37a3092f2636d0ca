package pki

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"

	"github.com/mote-k8s/mote/internal/layout"
)

// Certificates gives access to the certificates and keys of a node on disk, for verbs that check or
// change them, whether or not a server runs. Its methods are safe beside a running server.
type Certificates struct {
	// DataDir is the data directory of the server.
	DataDir string
	// NodeDir is the credentials directory of the node, below DataDir.
	NodeDir string
	// AdminKubeconfig is Config.AdminKubeconfig, below DataDir.
	AdminKubeconfig string
	// Copies are the paths of copies of the admin kubeconfig, anywhere.
	Copies []string
	// TLSSANs are the names that Check requires in the apiserver's certificate besides those of
	// every cluster.
	TLSSANs []string
}

func (c Certificates) credentials() *Credentials {
	return New(layout.Data(c.DataDir))
}

// lock locks the files for a change, and finishes an interrupted one.
func (c Certificates) lock() (*Credentials, func(), error) {
	creds := c.credentials()
	release, err := creds.Lock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, c.absent()
	}
	if err != nil {
		return nil, nil, err
	}
	err = creds.FinishRotation()
	if err == nil {
		err = c.noneWaiting()
	}
	if err == nil {
		err = creds.read()
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return creds, release, nil
}

func (c Certificates) absent() error {
	return fmt.Errorf("there are no certificates in %s; \"mote server\" makes them, and --data-dir names another directory", c.DataDir)
}

// Waiting reports whether a change of authorities waits for the next start of the server.
func (c Certificates) Waiting() (bool, error) {
	_, err := os.Stat(c.credentials().plan(authoritiesPlan))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (c Certificates) noneWaiting() error {
	waiting, err := c.Waiting()
	if waiting {
		return errors.New("a change of authorities waits for the next start of mote, which renews all certificates; restart mote first")
	}
	return err
}

// read reads the authorities. It creates none: at most it updates the bundle of trusted ones.
func (c *Credentials) read() error {
	for _, name := range authorityNames() {
		base := c.Path(name)
		if _, err := os.Stat(base + ".crt"); err != nil {
			return fmt.Errorf("cannot read authority %s: %w; \"mote server\" makes its certificate again from its key", name, err)
		}
		ca, err := loadAuthority(base, commonNames()[name])
		if err != nil {
			return err
		}
		*c.authorities()[name] = ca
	}
	return nil
}

// leaves returns the leaves of a node: those of the control plane and those in NodeDir.
func (c Certificates) leaves(creds *Credentials) []leafFile {
	var all []leafFile
	required := subject{
		commonName: "kube-apiserver", usage: x509.ExtKeyUsageServerAuth,
		names: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"}, addrs: loopbackAddrs(),
	}
	required.add(c.TLSSANs)
	for _, l := range controlPlaneLeaves(required) {
		all = append(all, leafFile{l, creds.Path(l.name)})
	}
	for _, l := range nodeLeaves(c.nodeName(), nil) {
		all = append(all, leafFile{l, filepath.Join(c.NodeDir, l.name)})
	}
	return all
}

// leafFile is a leaf and its path without extension.
type leafFile struct {
	leaf
	base string
}

// leavesOf returns the leaves of one authority.
func leavesOf(all []leafFile, authority string) []leafFile {
	return slices.DeleteFunc(all, func(l leafFile) bool { return l.authority != authority })
}

// nodeName returns the node in the kubelet's client certificate. The kubelet's serving certificate
// is checked against that name.
func (c Certificates) nodeName() string {
	data, err := os.ReadFile(filepath.Join(c.NodeDir, "kubelet-client.crt"))
	if err != nil {
		return ""
	}
	cert, err := parseCertificate(data)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(cert.Subject.CommonName, "system:node:")
}

// Rotate renews leaves at once, by name or all, with the names and addresses that they have, and
// writes the administrator's into the admin kubeconfig. Either all of them are renewed or none. A
// running server uses the new ones without a restart. newKeys replaces their keys too. It returns
// the names of the renewed leaves.
func (c Certificates) Rotate(names []string, newKeys bool, now time.Time) ([]string, error) {
	creds, release, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	chosen, err := choose(c.leaves(creds), names)
	if err != nil {
		return nil, err
	}
	var p plan
	var renewed []string
	var kubeconfig []byte
	for _, l := range chosen {
		certPEM, keyPEM, err := creds.reissue(l, newKeys, now)
		if err != nil {
			return nil, fmt.Errorf("renew %s: %w", l.name, err)
		}
		p.add(l.base+".key", keyPEM, 0o600)
		p.add(l.base+".crt", certPEM, 0o644)
		if l.name == "admin" {
			if kubeconfig, err = c.kubeconfigWith(certPEM, keyPEM); err != nil {
				return nil, err
			}
			p.add(c.AdminKubeconfig, kubeconfig, 0o600)
		}
		renewed = append(renewed, l.name)
	}
	path := creds.plan(leavesPlan)
	if err := p.write(c.DataDir, path); err != nil {
		return nil, err
	}
	if err := carryOut(c.DataDir, path); err != nil {
		return nil, fmt.Errorf("the renewal is decided on and not finished; a running mote finishes it within a minute, or else its next start: %w", err)
	}
	if kubeconfig != nil {
		for _, path := range c.Copies {
			if err := updateCopy(path, kubeconfig); err != nil {
				return nil, fmt.Errorf("the certificates are renewed, but not everywhere: %w", err)
			}
		}
	}
	return renewed, nil
}

// choose returns the leaves with these names, or all leaves without names.
func choose(all []leafFile, names []string) ([]leafFile, error) {
	if len(names) == 0 {
		return all, nil
	}
	var known []string
	for _, l := range all {
		known = append(known, l.name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no certificate %q to renew; there are %s", name, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(all, func(l leafFile) bool { return !slices.Contains(names, l.name) }), nil
}

// reissue signs a new certificate with the subject of a leaf.
func (c *Credentials) reissue(l leafFile, newKeys bool, now time.Time) (certPEM, keyPEM []byte, err error) {
	const again = "; mote makes it again at its next start, or within a minute while it runs"
	data, err := os.ReadFile(l.base + ".crt")
	if err != nil {
		return nil, nil, fmt.Errorf("%w"+again, err)
	}
	cert, err := parseCertificate(data)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s.crt: %w"+again, l.base, err)
	}
	if cert.Subject.CommonName != l.commonName {
		return nil, nil, fmt.Errorf("%s.crt is for %q and not for %q"+again, l.base, cert.Subject.CommonName, l.commonName)
	}
	key, err := parseKeyFile(l.base + ".key")
	if err != nil {
		return nil, nil, fmt.Errorf("%w"+again, err)
	}
	if newKeys {
		key, keyPEM, err = newKey()
	} else {
		keyPEM, err = keyutil.MarshalPrivateKeyToPEM(key)
	}
	if err != nil {
		return nil, nil, err
	}
	certPEM, err = (*c.authorities()[l.authority]).issue(subjectOf(cert), key, now)
	return certPEM, keyPEM, err
}

// kubeconfigWith returns the admin kubeconfig with another certificate.
func (c Certificates) kubeconfigWith(certPEM, keyPEM []byte) ([]byte, error) {
	config, err := clientcmd.LoadFromFile(c.AdminKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read the administrator's kubeconfig: %w; mote makes it again at its next start, or within a minute while it runs", err)
	}
	user := adminUser(config)
	if user == nil {
		return nil, fmt.Errorf("%s has no user of its current context; remove it, and mote makes it again", c.AdminKubeconfig)
	}
	user.ClientCertificateData, user.ClientKeyData = certPEM, keyPEM
	return clientcmd.Write(*config)
}

// RotateAuthorities plans new authorities and a new key for service-account tokens. The next start
// of the server applies the plan and renews all certificates. The old ones stay trusted beside the
// new ones until FinishAuthorities. With from, it uses the authorities and the key in that
// directory, and replaces only those that the directory has. It returns the names of the replaced
// ones.
func (c Certificates) RotateAuthorities(from string, now time.Time) ([]string, error) {
	creds, release, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	old, err := creds.outgoing()
	if err != nil {
		return nil, err
	}
	if len(old) > 0 {
		return nil, fmt.Errorf("the authorities before (%s) are still trusted; \"mote certs rotate-ca --finish\" ends that, then start anew", strings.Join(old, ", "))
	}
	var p plan
	var names []string
	for _, name := range authorityNames() {
		next, keyPEM, err := nextAuthority(name, from, now)
		if err != nil {
			return nil, err
		}
		if next == nil {
			continue
		}
		if err := creds.replace(&p, name, next, keyPEM, leavesOf(c.leaves(creds), name), now); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	replaced, err := creds.replaceTokenKey(&p, from)
	if err != nil {
		return nil, err
	}
	if replaced {
		names = append(names, "service-account")
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s has none of %s.crt with its .key, and no %s", from, strings.Join(authorityNames(), ".crt, "), tokenKey)
	}
	return names, p.write(c.DataDir, creds.plan(authoritiesPlan))
}

// FinishAuthorities plans that the authorities and keys before the present ones are no longer
// trusted, from the next start of the server on. It returns their names.
func (c Certificates) FinishAuthorities() ([]string, error) {
	creds, release, err := c.lock()
	if err != nil {
		return nil, err
	}
	defer release()
	old, err := creds.outgoing()
	if err != nil {
		return nil, err
	}
	if len(old) == 0 {
		return nil, errors.New("there is nothing to finish: no authority but the present ones is trusted; \"mote certs rotate-ca\" makes new ones")
	}
	var p plan
	for _, name := range authorityNames() {
		ca := *creds.authorities()[name]
		p.add(creds.Path(name)+bundleSuffix, ca.certPEM, 0o644)
		p.add(creds.Path(name)+crossSuffix, nil, 0)
	}
	key, err := parseKeyFile(creds.Path(tokenKey))
	if err != nil {
		return nil, err
	}
	public, err := encodePublic([]crypto.PublicKey{key.Public()})
	if err != nil {
		return nil, err
	}
	p.add(creds.Path(tokenPublicKeys), public, 0o600)
	return old, p.write(c.DataDir, creds.plan(authoritiesPlan))
}
