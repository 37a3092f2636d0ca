package datastore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/sql"
)

// sqliteFile is the name of SQLite's file beside Config.Path when the endpoint names no file.
const sqliteFile = "kine.db"

// engine is a storage engine of one of three kinds:
//
//	bolt    mote's own, in a file; served on the socket
//	kine    SQLite, PostgreSQL, MySQL, NATS; served on the socket
//	remote  etcd; the apiserver connects to it directly, and mote serves nothing
type engine interface {
	fmt.Stringer
	// probe checks once whether the data is available. sql.ErrRefused means that a retry does not
	// help.
	probe(ctx context.Context) error
	// file returns the path of the store file on this machine, or "".
	file() string
	// open opens the store. It returns nil if an external server serves the store.
	open(ctx context.Context) (store, error)
}

// newEngine parses Config.Endpoint. Its errors do not repeat the endpoint, which may hold a
// password.
func newEngine(cfg Config) (engine, error) {
	scheme, _, _ := strings.Cut(cfg.Endpoint, "://")
	tlsFiles := cfg.CAFile != "" || cfg.CertFile != "" || cfg.KeyFile != ""
	switch scheme {
	case "", "bolt":
		if scheme != cfg.Endpoint {
			return nil, errors.New("datastore endpoint: bolt takes no path")
		}
		if tlsFiles {
			return nil, errors.New("datastore endpoint: bolt has no server, so no TLS files can be given")
		}
		return boltEngine{path: cfg.Path, options: bolt.Options{
			ProgressInterval: cfg.ProgressInterval, Volatile: cfg.Volatile, Above: cfg.Above, QuotaBytes: cfg.QuotaBytes, Restore: cfg.Restore,
		}}, nil
	case "http", "https":
		remote, err := parseRemote(cfg)
		if err != nil {
			return nil, fmt.Errorf("datastore endpoint: %w", err)
		}
		return remote, nil
	case "sqlite", "postgres", "postgresql", "mysql", "nats":
		endpoint, err := sql.Parse(cfg.Endpoint, filepath.Join(filepath.Dir(cfg.Path), sqliteFile),
			sql.TLS{CAFile: cfg.CAFile, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile})
		if err != nil {
			return nil, fmt.Errorf("datastore endpoint: %w", err)
		}
		return kineEngine{endpoint, cfg}, nil
	}
	return nil, errors.New("datastore endpoint: not one of bolt, sqlite, postgres://, mysql://, nats://, http:// and https:// (etcd)")
}

type boltEngine struct {
	path    string
	options bolt.Options
}

// String implements fmt.Stringer.
func (e boltEngine) String() string { return "bolt at " + e.path }

func (e boltEngine) file() string { return e.path }

func (boltEngine) probe(context.Context) error { return nil }

func (e boltEngine) open(context.Context) (store, error) {
	opened, err := bolt.Open(e.path, e.options)
	if err != nil {
		return nil, err
	}
	return boltStore{opened, e.path}, nil
}

type kineEngine struct {
	sql.Endpoint
	cfg Config
}

func (e kineEngine) file() string { return e.File() }

func (e kineEngine) probe(ctx context.Context) error { return sql.Probe(ctx, e.Endpoint) }

func (e kineEngine) open(ctx context.Context) (store, error) {
	if e.cfg.Above > 0 {
		if err := sql.Raise(ctx, e.Endpoint, e.cfg.Above); err != nil {
			return nil, err
		}
	}
	opened, err := sql.Open(ctx, e.Endpoint, sql.Options{ProgressInterval: e.cfg.ProgressInterval})
	if err != nil {
		return nil, err
	}
	return kineStore{opened}, nil
}

// parseRemote parses the endpoints of an etcd: http:// or https://, joined by commas.
func parseRemote(cfg Config) (remote, error) {
	r := remote{tls: &tls.Config{MinVersion: tls.VersionTLS12}}
	for one := range strings.SplitSeq(cfg.Endpoint, ",") {
		u, err := url.Parse(one)
		switch {
		case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Host == "", strings.Trim(u.Path, "/") != "", u.RawQuery != "":
			return r, errors.New("not of the form https://HOST:2379[,https://HOST:2379...]")
		case u.User != nil:
			return r, errors.New("etcd's user is told from a certificate: give datastore-certfile and datastore-keyfile, no password")
		case u.Port() == "":
			return r, fmt.Errorf("etcd at %s is without port; 2379 is usual", u.Host)
		case len(r.urls) > 0 && u.Scheme != r.urls[0].Scheme:
			return r, errors.New("etcd's endpoints must be all http or all https")
		case u.Scheme == "http" && (cfg.CAFile != "" || cfg.CertFile != ""):
			return r, errors.New("etcd's endpoint is http, but TLS files are given; make it https")
		}
		r.urls = append(r.urls, u)
	}
	return r, r.load(cfg)
}
