package datastore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/blang/semver/v4"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mote-k8s/mote/internal/regular"
)

// progressVersion is the first etcd that answers progress requests of watches without a race. With
// an older one the apiserver reads each consistent list from etcd itself.
const progressVersion = "3.5.13"

// questionTimeout limits one request to one member.
const questionTimeout = 5 * time.Second

// remote is an external etcd.
type remote struct {
	urls []*url.URL
	tls  *tls.Config
}

// file implements engine: an external etcd has no file on this machine.
func (remote) file() string { return "" }

// load reads the TLS files, so that a missing file is an error before anything starts.
func (r remote) load(cfg Config) error {
	if cfg.CAFile != "" {
		pem, err := regular.ReadFile(cfg.CAFile, maxPEM)
		if err != nil {
			return fmt.Errorf("read datastore-cafile: %w", err)
		}
		r.tls.RootCAs = x509.NewCertPool()
		if !r.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("datastore-cafile %s holds no certificate in PEM form", cfg.CAFile)
		}
	}
	if cfg.CertFile == "" {
		return nil
	}
	pair, err := loadKeyPair(cfg.CertFile, cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("datastore-certfile and datastore-keyfile: %w", err)
	}
	r.tls.Certificates = []tls.Certificate{pair}
	return nil
}

// maxPEM limits the size of a file with certificates or a key, in bytes: all public authorities of
// a Linux distribution take a fifth of it.
const maxPEM = 1 << 20

// loadKeyPair is tls.LoadX509KeyPair restricted to regular files.
func loadKeyPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := regular.ReadFile(certFile, maxPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := regular.ReadFile(keyFile, maxPEM)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

// String implements fmt.Stringer.
func (r remote) String() string {
	hosts := make([]string, len(r.urls))
	for i, u := range r.urls {
		hosts[i] = u.Host
	}
	return "etcd at " + strings.Join(hosts, ",")
}

func (remote) open(context.Context) (store, error) { return nil, nil }

// probe succeeds if one member answers.
func (r remote) probe(ctx context.Context) error {
	var failed error
	for _, u := range r.urls {
		version, err := r.ask(ctx, u)
		if err == nil {
			return warnIfOld(u.Host, version)
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", u.Host, err))
	}
	return failed
}

// ask makes a member read a key, which needs a majority of the members, and returns the member's
// version.
func (r remote) ask(ctx context.Context, u *url.URL) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	creds := insecure.NewCredentials()
	if u.Scheme == "https" {
		creds = credentials.NewTLS(r.tls.Clone())
	}
	conn, err := grpc.NewClient(u.Host, grpc.WithTransportCredentials(creds))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := etcdserverpb.NewKVClient(conn).Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(healthKey)}); err != nil {
		return "", err
	}
	status, err := etcdserverpb.NewMaintenanceClient(conn).Status(ctx, &etcdserverpb.StatusRequest{})
	return status.GetVersion(), err
}

// warnIfOld logs a warning about an etcd version that lacks features which the apiserver can use.
func warnIfOld(host, text string) error {
	version, err := semver.ParseTolerant(text)
	if err != nil {
		return fmt.Errorf("%s has version %q: %w", host, text, err)
	}
	if version.LT(semver.MustParse(progressVersion)) {
		slog.Warn("etcd is old, so consistent lists are not answered from the apiserver's cache", "component", "datastore",
			"host", host, "version", text, "wanted", progressVersion)
	}
	return nil
}
