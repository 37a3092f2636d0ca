package datastore_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-k8s/mote/datastore"
)

func TestListenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		listen datastore.Listen
		want   string
	}{
		"the world in plain text": {datastore.Listen{Address: "0.0.0.0:2379"}, "whoever reaches it owns the data"},
		"half of it":              {datastore.Listen{Address: "127.0.0.1:2379", CertFile: "c"}, "give all three"},
		"clients without proof":   {datastore.Listen{Address: "0.0.0.0:2379", CertFile: "c", KeyFile: "k"}, "give all three"},
		"a name":                  {datastore.Listen{Address: "localhost:2379"}, "is not an address and port"},
		"nothing to protect":      {datastore.Listen{CertFile: "c"}, "there is none"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t.TempDir())
			cfg.Listen = c.listen
			require.ErrorContains(t, cfg.Validate(), c.want)
		})
	}
}

// TestListenWithTLS checks that only clients with a certificate are accepted.
func TestListenWithTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newAuthority(t)
	cfg := config(dir)
	cfg.Listen = datastore.Listen{
		Address: freeAddress(t), CertFile: filepath.Join(dir, "crt"), KeyFile: filepath.Join(dir, "key"), ClientCAFile: filepath.Join(dir, "ca"),
	}
	server := ca.issue(t, "server")
	write := func(path, kind string, der []byte) {
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	write(cfg.Listen.CertFile, "CERTIFICATE", server.Certificate[0])
	key, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	require.NoError(t, err)
	write(cfg.Listen.KeyFile, "PRIVATE KEY", key)
	write(cfg.Listen.ClientCAFile, "CERTIFICATE", ca.cert.Raw)

	d, err := datastore.New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	defer func() { cancel(); require.NoError(t, <-ended) }()
	require.NoError(t, d.Ready(ctx))

	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	as := func(certs ...tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: roots, Certificates: certs, NextProtos: []string{"h2"}}
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + cfg.Listen.Address}, TLS: as(ca.issue(t, "client"))})
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Put(ctx, "/a", "1")
	require.NoError(t, err)
	for _, stranger := range []*tls.Config{as(), as(newAuthority(t).issue(t, "stranger"))} {
		conn, err := tls.Dial("tcp", cfg.Listen.Address, stranger)
		require.NoError(t, err)
		_, err = conn.Read(make([]byte, 1))
		require.ErrorContains(t, err, "remote error: tls")
		require.NoError(t, conn.Close())
	}
}

type testAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) testAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return testAuthority{cert, key}
}

func (a testAuthority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
