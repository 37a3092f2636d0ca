package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/util/keyutil"

	"github.com/mote-k8s/mote/internal/regular"
)

// An authority is replaced in two steps, each of which takes effect when a server starts:
//
//	present ──rotate──► present + old trusted ──finish──► present
//
// Between the steps, leaves are signed by the new authority. Each leaf is followed by the new
// authority's certificate signed by the old one (cross). So clients that know only the old
// authority still verify the leaves: a copied kubeconfig, or a pod that has run for long.

// outgoing returns the names of the authorities that were replaced and are still trusted.
func (c *Credentials) outgoing() ([]string, error) {
	var names []string
	for _, name := range authorityNames() {
		if len(CertificatesIn((*c.authorities()[name]).trusted)) > 1 {
			names = append(names, name)
		}
	}
	key, err := parseKeyFile(c.Path(tokenKey))
	if err != nil {
		return nil, err
	}
	old, err := c.oldTokenKeys(key)
	if len(old) > 0 {
		names = append(names, "service-account")
	}
	return names, err
}

// replace adds the files to p that replace the authority called name by next. It first verifies
// that next can sign the given leaves.
func (c *Credentials) replace(p *plan, name string, next *authority, keyPEM []byte, leaves []leafFile, now time.Time) error {
	old := *c.authorities()[name]
	if next.cert.Equal(old.cert) || samePublic(next.key.Public(), old.key.Public()) {
		return fmt.Errorf("the new %s has the key of the present one", name)
	}
	if err := next.verifyLeaves(leaves, next.cert, now); err != nil {
		return fmt.Errorf("cannot take the new %s: %w", name, err)
	}
	base := c.Path(name)
	p.add(base+".key", keyPEM, 0o600)
	p.add(base+".crt", next.certPEM, 0o644)
	p.add(base+bundleSuffix, append(append([]byte{}, next.certPEM...), old.certPEM...), 0o644)
	if name != ServerAuthority {
		return nil // this server or the cluster gives the verifiers of clients the list of trusted authorities
	}
	if now.After(old.cert.NotAfter) {
		return nil // no client can verify by it any more
	}
	crossed, err := next.crossedBy(old)
	if err != nil {
		return fmt.Errorf("sign the new %s by the present one: %w", name, err)
	}
	if err := crossed.verifyLeaves(leaves, old.cert, now); err != nil {
		return fmt.Errorf("cannot sign the new %s by the present one, so that who knows that alone trusts it: %w%s", name, err, c.manualAdvice(name))
	}
	p.add(base+crossSuffix, crossed.cross, 0o644)
	return nil
}

// manualAdvice explains how to replace an authority where a transition is impossible.
func (c *Credentials) manualAdvice(name string) string {
	return fmt.Sprintf("; to change it without a transition, stop mote, put the new one's files in the place of %s and .key, "+
		"start mote, and give every client the new kubeconfig", c.Path(name+".crt"))
}

// crossedBy returns ca with a certificate for it that old has signed.
func (ca *authority) crossedBy(old *authority) (*authority, error) {
	template := authorityTemplate(pkix.Name{})
	// The raw name: leaves contain their issuer's name as bytes, and OpenSSL and Go encode one name
	// differently.
	template.RawSubject = ca.cert.RawSubject
	template.NotAfter = ca.cert.NotAfter
	if old.cert.NotAfter.Before(template.NotAfter) {
		template.NotAfter = old.cert.NotAfter
	}
	template.SubjectKeyId = ca.cert.SubjectKeyId
	cross, err := sign(template, old.cert, ca.key.Public(), old.key)
	if err != nil {
		return nil, err
	}
	crossed := *ca
	crossed.cross = cross
	return &crossed, nil
}

// verifyLeaves issues each of leaves and verifies it as a client that trusts only root does.
func (ca *authority) verifyLeaves(leaves []leafFile, root *x509.Certificate, now time.Time) error {
	if len(ca.cross) > 0 && root.MaxPathLenZero {
		return errors.New("the present one allows no authority below it (path length 0)")
	}
	key, _, err := newKey()
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	for _, l := range leaves {
		certPEM, err := ca.issue(l.current(), key, now)
		if err != nil {
			return fmt.Errorf("issue %s: %w", l.name, err)
		}
		chain, intermediates := CertificatesIn(certPEM), x509.NewCertPool()
		if len(chain) == 0 {
			return fmt.Errorf("issue %s: the certificate cannot be read", l.name)
		}
		for _, cert := range chain[1:] {
			intermediates.AddCert(cert)
		}
		// This verifies names too: the authorities must be permitted to certify the names in a
		// leaf.
		_, err = chain[0].Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{l.usage},
		})
		if err != nil {
			return fmt.Errorf("a certificate %s by it would not be accepted: %w", l.name, err)
		}
	}
	return nil
}

// current returns the subject of the leaf on disk, or of the one that would be created.
func (l leafFile) current() subject {
	cert, _ := readCertificate(l.base + ".crt")
	if cert == nil || cert.Subject.CommonName != l.commonName || !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{l.usage}) {
		return l.subject
	}
	return subjectOf(cert)
}

// replaceTokenKey adds a new key for service-account tokens to p, with the public half of the
// present key. With from, it does so only if that directory has a key.
func (c *Credentials) replaceTokenKey(p *plan, from string) (bool, error) {
	old, err := parseKeyFile(c.Path(tokenKey))
	if err != nil {
		return false, err
	}
	key, keyPEM, err := nextKey(tokenKey, from)
	if err != nil || key == nil {
		return false, err
	}
	if err := checkTokenKey(key); err != nil {
		return false, fmt.Errorf("cannot take %s: %w", filepath.Join(from, tokenKey), err)
	}
	if samePublic(key.Public(), old.Public()) {
		return false, errors.New("the new service-account.key is the present one")
	}
	public, err := encodePublic([]crypto.PublicKey{key.Public(), old.Public()})
	if err != nil {
		return false, err
	}
	p.add(c.Path(tokenKey), keyPEM, 0o600)
	p.add(c.Path(tokenPublicKeys), public, 0o600)
	return true, nil
}

// nextAuthority creates an authority, or reads it from the directory from. It returns nil if the
// directory has none of that name. The name of a new authority contains its key: some clients
// confuse two authorities of one name.
func nextAuthority(name, from string, now time.Time) (*authority, []byte, error) {
	key, keyPEM, err := nextKey(name+".key", from)
	if err != nil {
		return nil, nil, err
	}
	if from == "" {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, nil, err
		}
		id := sha256.Sum256(der)
		ca, err := newAuthority(commonNames()[name]+" "+hex.EncodeToString(id[:4]), key)
		return ca, keyPEM, err
	}
	path := filepath.Join(from, name+".crt")
	certPEM, err := regular.ReadFile(path, maxPEM)
	switch {
	case errors.Is(err, fs.ErrNotExist) && key == nil:
		return nil, nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("%s.key needs its certificate: %w", name, err)
	case key == nil:
		return nil, nil, fmt.Errorf("%s needs its key: there is no %s.key in %s", path, name, from)
	}
	certs := CertificatesIn(certPEM)
	if len(certs) != 1 {
		return nil, nil, fmt.Errorf("%s has %d certificates; give the authority's own alone, in PEM", path, len(certs))
	}
	if err := checkAuthority(certs[0], key, now); err != nil {
		return nil, nil, fmt.Errorf("cannot take %s: it %w", path, err)
	}
	return &authority{cert: certs[0], certPEM: encodeCertificate(certs[0]), key: key}, keyPEM, nil
}

// nextKey creates a key, or reads it from the directory from. It returns nil if the directory has
// none of that name.
func nextKey(name, from string) (crypto.Signer, []byte, error) {
	if from == "" {
		return newKey()
	}
	key, err := parseKeyFile(filepath.Join(from, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	return key, keyPEM, err
}

// checkTokenKey refuses a key that cannot sign tokens: JWS has algorithms for three curves (RFC
// 7518, section 3.4).
func checkTokenKey(key crypto.Signer) error {
	public, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return nil
	}
	switch public.Curve {
	case elliptic.P256(), elliptic.P384(), elliptic.P521():
		return nil
	}
	return fmt.Errorf("its curve is %s, and tokens are signed with P-256, P-384 or P-521", public.Curve.Params().Name)
}

// checkAuthority returns an error if a user's authority cannot be used.
func checkAuthority(cert *x509.Certificate, key crypto.Signer, now time.Time) error {
	switch {
	case !cert.IsCA || !cert.BasicConstraintsValid:
		return errors.New("is no authority: its basic constraints do not say CA:TRUE")
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("may not sign certificates: its key usage lacks keyCertSign")
	case !keyMatches(key, cert):
		return errors.New("does not belong to the key beside it")
	case cert.CheckSignatureFrom(cert) != nil:
		return errors.New("is not signed by itself, and many clients trust no other kind alone")
	case now.Before(cert.NotBefore):
		return fmt.Errorf("is not valid before %s", cert.NotBefore.Format(time.RFC3339))
	case cert.NotAfter.Sub(now) < leafLifetime:
		return fmt.Errorf("ends at %s, and certificates that it signs are to last a year", cert.NotAfter.Format(time.RFC3339))
	}
	return nil
}
