package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// certificate is the certificate of a Secret, or the reason why there is none.
type certificate struct {
	tls  *tls.Certificate
	leaf *x509.Certificate
	err  error
}

// certificates caches one parsed certificate for each version of a Secret. One goroutine uses it.
type certificates struct {
	known, used map[types.UID]versionedCertificate
}

type versionedCertificate struct {
	version string
	*certificate
}

func (c *certificates) of(s *corev1.Secret) *certificate {
	found, ok := c.known[s.UID]
	if !ok || found.version != s.ResourceVersion {
		found = versionedCertificate{s.ResourceVersion, parseCertificate(s)}
	}
	if c.used == nil {
		c.used = make(map[types.UID]versionedCertificate)
	}
	c.used[s.UID] = found
	return found.certificate
}

// forget drops the entries that were not used since its last call.
func (c *certificates) forget() { c.known, c.used = c.used, nil }

func parseCertificate(s *corev1.Secret) *certificate {
	for _, key := range []string{corev1.TLSCertKey, corev1.TLSPrivateKeyKey} {
		if len(s.Data[key]) == 0 {
			return &certificate{err: fmt.Errorf("it has no %s", key)}
		}
	}
	pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return &certificate{err: errors.New(strings.TrimPrefix(err.Error(), "tls: "))}
	}
	return &certificate{tls: &pair, leaf: pair.Leaf}
}

// objection returns the reason why clients that ask for host will reject the certificate, or "" if
// they accept it.
func (c *certificate) objection(host string, now time.Time) string {
	switch {
	case now.After(c.leaf.NotAfter):
		return "has expired at " + c.leaf.NotAfter.UTC().Format(time.RFC3339)
	case now.Before(c.leaf.NotBefore):
		return "is not valid before " + c.leaf.NotBefore.UTC().Format(time.RFC3339)
	}
	asked := host
	if parent, ok := strings.CutPrefix(host, "*."); ok {
		asked = "any." + parent
	}
	if c.leaf.VerifyHostname(asked) != nil && !strings.EqualFold(c.leaf.Subject.CommonName, host) {
		return "is not for " + host
	}
	return ""
}

// certificate returns the certificate for a host that a client asked for, or nil if there is none.
func (t *table) certificate(host string) *tls.Certificate {
	c := t.certificates[host]
	if parent := parentOf(host); c == nil && parent != "" {
		c = t.certificates["*."+parent]
	}
	if c == nil {
		return nil
	}
	return c.tls
}

// newDefaultCertificate makes the certificate for hosts that have none. Nobody can verify it, so it
// names no real host. Its key is never written to a file.
func newDefaultCertificate() (*tls.Certificate, error) {
	c, err := newCertificate("mote ingress default certificate", []string{"ingress.invalid"})
	if err != nil {
		return nil, fmt.Errorf("make the default certificate: %w", err)
	}
	return c, nil
}

func newCertificate(name string, hosts []string) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: hosts,
		// The validity is wide because machines may have no clock.
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
