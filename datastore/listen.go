package datastore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mote-k8s/mote/internal/regular"
)

// Listen is an endpoint over TCP. Every client that it accepts has full control of the stored data:
// an address other than loopback requires certificates.
type Listen struct {
	// Address is IP:PORT; empty means no endpoint.
	Address string
	// CertFile and KeyFile are the server's certificate, with its chain, and its key. ClientCAFile
	// has the authorities whose clients are accepted. All are PEM. They may be empty on loopback;
	// then every process on this machine is accepted.
	CertFile, KeyFile, ClientCAFile string
}

func (l Listen) secure() bool { return l.CertFile != "" && l.KeyFile != "" && l.ClientCAFile != "" }

func (l Listen) validate() error {
	plain := l.CertFile == "" && l.KeyFile == "" && l.ClientCAFile == ""
	if l.Address == "" {
		if !plain {
			return errors.New("datastore: certificates are for an endpoint over TCP, and there is none")
		}
		return nil
	}
	addr, err := netip.ParseAddrPort(l.Address)
	switch {
	case err != nil:
		return fmt.Errorf("datastore: %q is not an address and port such as 127.0.0.1:2379", l.Address)
	case !plain && !l.secure():
		return errors.New("datastore: certificate, key and the clients' authority belong together; give all three")
	case plain && !addr.Addr().IsLoopback():
		return fmt.Errorf("datastore: %s can be reached from other machines, and whoever reaches it owns the data; give a certificate, its key and the clients' authority, or listen on 127.0.0.1", l.Address)
	}
	return nil
}

// listen opens the endpoint, if one is configured.
func (l Listen) listen(ctx context.Context) ([]net.Listener, error) {
	if l.Address == "" {
		return nil, nil
	}
	var config *tls.Config
	if l.secure() {
		var err error
		if config, err = l.tls(); err != nil {
			return nil, err
		}
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", l.Address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", l.Address, err)
	}
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	return []net.Listener{listener}, nil
}

func (l Listen) tls() (*tls.Config, error) {
	cert, err := loadKeyPair(l.CertFile, l.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read the datastore's certificate %s with key %s: %w", l.CertFile, l.KeyFile, err)
	}
	pem, err := regular.ReadFile(l.ClientCAFile, maxPEM)
	if err != nil {
		return nil, fmt.Errorf("read the authority of the datastore's clients: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the authority of the datastore's clients: there is no certificate in %s", l.ClientCAFile)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
	}, nil
}
