package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
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

	"github.com/mote-k8s/mote/internal/durable"
)

// leafLifetime is how long a leaf is valid; it is renewed when a third of that is left, so a
// machine that runs always has at least four months in hand.
const leafLifetime = 365 * 24 * time.Hour

// These bound the validity of certificates. A machine without a clock boots at 1970, so nothing
// may begin later. An authority does not end: RFC 5280, section 4.1.2.5, gives this date for
// "no well-defined expiration date".
var (
	validFrom  = time.Unix(0, 0).UTC()
	noEnd      = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
	clockFloor = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
)

// authority is a certificate authority with its private key.
type authority struct {
	cert    *x509.Certificate
	certPEM []byte
	key     *ecdsa.PrivateKey
}

// subject is what a leaf certificate says about its holder.
type subject struct {
	commonName    string
	organizations []string
	usage         x509.ExtKeyUsage
	names         []string     // DNS names, for serving
	addrs         []netip.Addr // for serving
}

// loadAuthority reads the authority in base.crt and base.key and makes what is not there yet.
// A crash can leave a key without a certificate, which is then signed; never the other way round.
func loadAuthority(base, commonName string) (*authority, error) {
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
		return makeAuthority(certPath, commonName, key)
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read authority's certificate %s: %w; remove it to have it made again from its key", certPath, err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s and %s do not belong together; restore both from one backup", certPath, keyPath)
	}
	return &authority{cert: cert, certPEM: certPEM, key: key}, nil
}

func makeAuthority(certPath, commonName string, key *ecdsa.PrivateKey) (*authority, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             validFrom,
		NotAfter:              noEnd,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	certPEM, err := sign(template, template, key, key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", commonName, err)
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	return &authority{cert: cert, certPEM: certPEM, key: key}, durable.WriteFile(certPath, certPEM, 0o644)
}

// ensureLeaf makes base.crt a certificate of ca for s that need not be renewed at now, and base.key
// its private key. It reports whether it changed the certificate. The key is kept if it can be read:
// the pair then stays consistent for whoever reads the two files in between.
func (ca *authority) ensureLeaf(base string, s subject, now time.Time) (bool, error) {
	key, err := readKey(base + ".key")
	if err != nil {
		if key, err = makeKey(base + ".key"); err != nil {
			return false, err
		}
	}
	if certPEM, err := os.ReadFile(base + ".crt"); err == nil {
		cert, err := parseCertificate(certPEM)
		if err == nil && ca.fits(cert, key, s) && !needsRenewal(cert, now) {
			return false, nil
		}
	}
	certPEM, err := ca.issue(s, key, now)
	if err != nil {
		return false, fmt.Errorf("sign certificate of %s: %w", s.commonName, err)
	}
	return true, durable.WriteFile(base+".crt", certPEM, 0o644)
}

func (ca *authority) issue(s subject, key *ecdsa.PrivateKey, now time.Time) ([]byte, error) {
	notAfter := now.Add(leafLifetime)
	if now.Before(clockFloor) {
		// The clock was never set and may jump decades at any time: no end is right until it is.
		notAfter = noEnd
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
	return sign(template, ca.cert, key, ca.key)
}

// fits says whether cert is of ca, belongs to key and says exactly what s does.
func (ca *authority) fits(cert *x509.Certificate, key *ecdsa.PrivateKey, s subject) bool {
	return cert.CheckSignatureFrom(ca.cert) == nil &&
		key.PublicKey.Equal(cert.PublicKey) &&
		cert.Subject.CommonName == s.commonName &&
		slices.Equal(cert.Subject.Organization, s.organizations) &&
		slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{s.usage}) &&
		slices.Equal(cert.DNSNames, s.names) &&
		slices.EqualFunc(cert.IPAddresses, netIPs(s.addrs), net.IP.Equal)
}

// needsRenewal says whether a leaf is near its end, or was made without an end for want of a clock
// that there is now.
func needsRenewal(cert *x509.Certificate, now time.Time) bool {
	if cert.NotAfter.Equal(noEnd) {
		return !now.Before(clockFloor)
	}
	return cert.NotAfter.Sub(now) < leafLifetime/3
}

func sign(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
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

// makeKey writes a new ECDSA P-256 private key, in the SEC 1 form that every reader of Kubernetes
// accepts, the one of service-account keys included.
func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", path, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", path, err)
	}
	return key, durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("read %s: not one PEM block", path)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return key, nil
}

func netIPs(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, addr := range addrs {
		ips = append(ips, addr.AsSlice())
	}
	return ips
}
