package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/util/keyutil"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/regular"
)

// leafLifetime is the time for which a leaf is valid. It is renewed when a third of that time is
// left, so on a machine that always runs a leaf is valid for at least four more months.
const leafLifetime = 365 * 24 * time.Hour

// Limits of the validity of certificates. A machine without a clock boots in 1970, so no
// certificate may begin later. An authority does not expire: RFC 5280, section 4.1.2.5, defines
// this date as "no well-defined expiration date".
var (
	validFrom  = time.Unix(0, 0).UTC()
	noEnd      = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
	clockFloor = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
)

// authority is a certificate authority with its private key.
type authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     crypto.Signer
	// trusted is the PEM bundle for the peers of this authority's leaves: certPEM and, during a
	// rotation, the authorities whose leaves are still valid (authorities.go).
	trusted []byte
	// cross is this authority's certificate signed by the previous one while that is trusted, or
	// empty. It follows each leaf, so that clients that know only the old authority trust the new
	// one's leaves.
	cross []byte
}

// Suffixes of the files beside an authority's certificate.
const (
	bundleSuffix = "-bundle.crt"
	crossSuffix  = "-cross.crt"
)

// subject describes the holder of a leaf certificate.
type subject struct {
	commonName    string
	organizations []string
	usage         x509.ExtKeyUsage
	names         []string     // DNS names, for serving
	addrs         []netip.Addr // for serving
}

// add adds DNS names and addresses.
func (s *subject) add(sans []string) {
	for _, san := range sans {
		if addr, err := netip.ParseAddr(san); err == nil {
			s.addrs = append(s.addrs, addr)
		} else {
			s.names = append(s.names, san)
		}
	}
}

// subjectOf returns the subject of a certificate.
func subjectOf(cert *x509.Certificate) subject {
	s := subject{commonName: cert.Subject.CommonName, organizations: cert.Subject.Organization, names: cert.DNSNames}
	if len(cert.ExtKeyUsage) > 0 {
		s.usage = cert.ExtKeyUsage[0]
	}
	for _, ip := range cert.IPAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			s.addrs = append(s.addrs, addr.Unmap())
		}
	}
	return s
}

// loadAuthority reads the authority in base.crt and base.key, and creates the missing files,
// including base-bundle.crt with the trusted authorities. A crash can leave a key without a
// certificate, which is then signed. It never leaves a certificate without a key.
func loadAuthority(base, commonName string) (*authority, error) {
	ca, err := loadPair(base, commonName)
	if err != nil {
		return nil, err
	}
	ca.trusted = slices.Clone(ca.certPEM)
	bundle, err := readOptional(base + bundleSuffix)
	if err != nil {
		return nil, err
	}
	known := CertificatesIn(bundle)
	if slices.ContainsFunc(known, ca.cert.Equal) {
		for _, old := range known {
			if !old.Equal(ca.cert) {
				ca.trusted = append(ca.trusted, encodeCertificate(old)...)
			}
		}
		ca.cross, err = readOptional(base + crossSuffix)
	} else {
		// The files belong to a previous authority that was removed or replaced: none of its
		// certificates is trusted. The bundle is written last, because it shows which authority the
		// files belong to.
		err = durable.RemoveFile(base + crossSuffix)
	}
	if err != nil {
		return nil, err
	}
	return ca, durable.UpdateFile(base+bundleSuffix, ca.trusted, 0o644)
}

func loadPair(base, commonName string) (*authority, error) {
	certPath, keyPath := base+".crt", base+".key"
	certPEM, err := os.ReadFile(certPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := readKey(keyPath)
	switch {
	case errors.Is(err, fs.ErrNotExist) && certPEM == nil:
		if key, err = makeKey(keyPath); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, fmt.Errorf("read authority's key: %w; restore it from a backup, or remove %s and %s to make "+
			"a new authority, which every node and client must then be given", err, certPath, keyPath)
	}
	if certPEM == nil {
		return restoreAuthority(base, commonName, key)
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read authority's certificate %s: %w; remove it to have it made again from its key", certPath, err)
	}
	if !keyMatches(key, cert) {
		return nil, fmt.Errorf("%s and %s do not belong together; restore both from one backup", certPath, keyPath)
	}
	return &authority{cert: cert, certPEM: certPEM, key: key}, nil
}

// restoreAuthority writes the certificate of key again: the one that is trusted, or else a new one
// with the same content.
func restoreAuthority(base, commonName string, key crypto.Signer) (*authority, error) {
	bundle, err := readOptional(base + bundleSuffix)
	if err != nil {
		return nil, err
	}
	for _, cert := range CertificatesIn(bundle) {
		if keyMatches(key, cert) {
			ca := &authority{cert: cert, certPEM: encodeCertificate(cert), key: key}
			return ca, durable.WriteFile(base+".crt", ca.certPEM, 0o644)
		}
	}
	ca, err := newAuthority(commonName, key)
	if err != nil {
		return nil, err
	}
	return ca, durable.WriteFile(base+".crt", ca.certPEM, 0o644)
}

func newAuthority(commonName string, key crypto.Signer) (*authority, error) {
	template := authorityTemplate(pkix.Name{CommonName: commonName})
	certPEM, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", commonName, err)
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, certPEM: certPEM, key: key}, nil
}

func authorityTemplate(name pkix.Name) *x509.Certificate {
	return &x509.Certificate{
		Subject:               name,
		NotBefore:             validFrom,
		NotAfter:              noEnd,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// ensureLeaf makes base.crt a certificate of ca for s that needs no renewal at now, and base.key
// its private key. It reports whether it changed the certificate. It keeps a readable key: the pair
// then stays consistent for clients that read the two files during the change.
func (ca *authority) ensureLeaf(base string, s subject, now time.Time) (bool, error) {
	key, err := readKey(base + ".key")
	if err != nil {
		if key, err = makeKey(base + ".key"); err != nil {
			return false, err
		}
	}
	if certPEM, err := os.ReadFile(base + ".crt"); err == nil {
		cert, err := parseCertificate(certPEM)
		if err == nil && ca.matches(cert, key, s) && bytes.HasSuffix(certPEM, ca.cross) &&
			len(CertificatesIn(certPEM)) == 1+len(CertificatesIn(ca.cross)) && !ca.needsRenewal(cert, now) {
			return false, nil
		}
	}
	certPEM, err := ca.issue(s, key, now)
	if err != nil {
		return false, fmt.Errorf("sign certificate of %s: %w", s.commonName, err)
	}
	return true, durable.WriteFile(base+".crt", certPEM, 0o644)
}

// issue signs a leaf. It returns the content of the certificate file.
func (ca *authority) issue(s subject, key crypto.Signer, now time.Time) ([]byte, error) {
	notAfter := now.Add(leafLifetime)
	if now.Before(clockFloor) {
		// The clock was never set and may jump by decades at any time: until then no expiry date is
		// right.
		notAfter = noEnd
	}
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter // a user's own authority may expire
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: s.commonName, Organization: s.organizations},
		NotBefore:             validFrom,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{s.usage},
		BasicConstraintsValid: true,
		DNSNames:              s.names,
		IPAddresses:           netIPs(s.addrs),
	}
	certPEM, err := sign(template, ca.cert, key.Public(), ca.key)
	return append(certPEM, ca.cross...), err
}

// matches reports whether ca signed cert, and whether cert belongs to key and has exactly the
// content of s.
func (ca *authority) matches(cert *x509.Certificate, key crypto.Signer, s subject) bool {
	return cert.CheckSignatureFrom(ca.cert) == nil &&
		keyMatches(key, cert) &&
		cert.Subject.CommonName == s.commonName &&
		slices.Equal(cert.Subject.Organization, s.organizations) &&
		slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{s.usage}) &&
		slices.Equal(cert.DNSNames, s.names) &&
		slices.EqualFunc(cert.IPAddresses, netIPs(s.addrs), net.IP.Equal)
}

// needsRenewal reports whether a leaf is near its expiry, or was issued without expiry for lack of
// a clock that is set now. A leaf that expires with its authority cannot be renewed for longer.
func (ca *authority) needsRenewal(cert *x509.Certificate, now time.Time) bool {
	if cert.NotAfter.Equal(noEnd) {
		return !now.Before(clockFloor)
	}
	if cert.NotAfter.Equal(ca.cert.NotAfter) {
		return false
	}
	return cert.NotAfter.Sub(now) < leafLifetime/3
}

func sign(template, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// CertificatesIn returns the certificates of a PEM bundle. It omits those that cannot be read:
// clients do not trust them.
func CertificatesIn(bundle []byte) []*x509.Certificate {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			certs = append(certs, cert)
		}
	}
	return certs
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func keyMatches(key crypto.Signer, cert *x509.Certificate) bool {
	return samePublic(key.Public(), cert.PublicKey)
}

func samePublic(a, b crypto.PublicKey) bool {
	public, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(b)
}

// makeKey writes a new private key.
func makeKey(path string) (crypto.Signer, error) {
	key, data, err := newKey()
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", path, err)
	}
	return key, durable.WriteFile(path, data, 0o600)
}

// newKey returns an ECDSA P-256 private key and its encoding in the SEC 1 form. All readers of keys
// in Kubernetes accept that form, also that of service-account keys.
func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	return key, data, err
}

// readKey reads a private key and sets the file's mode so that only its owner can read it.
func readKey(path string) (crypto.Signer, error) {
	key, err := parseKeyFile(path)
	if err != nil {
		return nil, err
	}
	return key, durable.SetMode(path, 0o600)
}

// maxPEM limits the size of a file of keys or certificates, in bytes: an authority's take some 2
// KiB.
const maxPEM = 1 << 20

func parseKeyFile(path string) (crypto.Signer, error) {
	data, err := regular.ReadFile(path, maxPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return key, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	parsed, err := keyutil.ParsePrivateKeyPEM(data)
	if err != nil {
		return nil, fmt.Errorf("no PEM private key: %w", err)
	}
	switch key := parsed.(type) {
	case *ecdsa.PrivateKey:
		return key, nil
	case *rsa.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("a %T, and Kubernetes knows RSA and ECDSA keys only", parsed)
}

// readOptional reads a file. It returns nil if there is none.
func readOptional(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

func netIPs(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, addr := range addrs {
		ips = append(ips, addr.AsSlice())
	}
	return ips
}
