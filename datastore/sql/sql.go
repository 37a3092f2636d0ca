// Package sql keeps the store in SQLite, PostgreSQL, MySQL or NATS, through kine as a library.
//
// It owns the choice of drivers, kine's configuration, the check of endpoints and the
// classification of servers that do not answer. kine does the rest: it keeps a log of revisions in
// one table (NATS: in one stream), polls it for watches, and serves its own bridge of etcd's
// protocol. ../README.md, "Engines", lists where that differs from etcd.
//
// Enter through Parse, which contacts no server; then call Probe until the server answers, Open,
// Register, and Close once the gRPC server has stopped. A Store is safe for concurrent use.
package sql

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/k3s-io/kine/pkg/drivers"
	_ "github.com/k3s-io/kine/pkg/drivers/mysql"  // registers mysql
	_ "github.com/k3s-io/kine/pkg/drivers/nats"   // registers nats; without build tag "nats", so without a server
	_ "github.com/k3s-io/kine/pkg/drivers/pgsql"  // registers postgres
	_ "github.com/k3s-io/kine/pkg/drivers/sqlite" // registers sqlite; without cgo, so in Go
	"github.com/k3s-io/kine/pkg/metrics"
	"github.com/k3s-io/kine/pkg/server"
	"github.com/k3s-io/kine/pkg/tls"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// The values are kine's own defaults, which k3s has used for years.
const (
	// compactInterval is the time between two compactions by kine; each removes the history before
	// the last interval. kine ignores compaction requests of the apiserver.
	compactInterval = 5 * time.Minute
	compactTimeout  = 5 * time.Second
	// compactRetain is the number of revisions that are kept in any case.
	compactRetain = 1000
	compactBatch  = 1000
	pollBatch     = 500
)

// openTimeout is for a server that has just answered: kine creates its table in it.
const openTimeout = time.Minute

// etcdVersion is the version that clients see. For etcd 3.5.12 the apiserver knows that watches do
// not support progress requests, and it takes consistent lists from the store instead of from its
// cache. kine does support the requests. But its answer comes up to a second late, when it polls,
// and covers only the last of the queues that an event passes on its way to the client.
const etcdVersion = "3.5.12"

// Options are the settings that the etcd protocol server needs.
type Options struct {
	// ProgressInterval is the time between two messages with the current revision to a watch.
	ProgressInterval time.Duration
}

// Store is an open store.
type Store struct {
	backend server.Backend
	options Options
	end     context.CancelFunc
	ended   *sync.WaitGroup
	lock    *os.File // SQLite's
	stray   bool     // see backend
}

// Open opens the store at e. It creates a missing database and a missing table.
func Open(ctx context.Context, e Endpoint, o Options) (*Store, error) {
	return open(ctx, e, o, server.Backend.Start)
}

// open calls start at the end. start creates kine's own rows and starts its background work.
func open(ctx context.Context, e Endpoint, o Options, start func(server.Backend, context.Context) error) (_ *Store, err error) {
	// kine's context must last as long as the store, not only as long as this call.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &Store{options: o, end: end, ended: &sync.WaitGroup{}, stray: e.driver == driverNATS}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot open datastore in %s: %w", e, err), s.Close())
		}
	}()
	if e.driver == driverSQLite {
		if s.lock, err = prepareFile(e.path); err != nil {
			return nil, err
		}
	}
	if e.driver == driverMySQL {
		// The driver logs to stderr by default. Its callers also get these messages as errors.
		if err := mysql.SetLogger(&mysql.NopLogger{}); err != nil {
			return nil, err
		}
	}
	defer context.AfterFunc(ctx, end)()
	defer time.AfterFunc(openTimeout, end).Stop()
	_, s.backend, err = drivers.New(life, s.ended, &drivers.Config{
		Endpoint:         e.dsn,
		BackendTLSConfig: e.tls.kine(),
		CompactInterval:  compactInterval, CompactTimeout: compactTimeout, CompactMinRetain: compactRetain,
		CompactBatchSize: compactBatch, PollBatchSize: pollBatch,
	})
	if err == nil {
		err = start(s.backend, life)
	}
	if err != nil && life.Err() != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("not ready within %s; does the database exist, or may the user make it? (%w)", openTimeout, err)
	}
	return s, err
}

// prepareFile creates SQLite's file with the right mode, and locks it: kine does not expect other
// writers.
func prepareFile(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make its folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	// Use a separate lock file: closing any descriptor of the database file would release the locks
	// that SQLite holds on it.
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(errors.New("another process has it open; stop the other mote"), lock.Close())
	}
	return lock, nil
}

// Register makes srv serve the store.
func (s *Store) Register(srv *grpc.Server) {
	server.New(backend{s.backend, s.stray}, "unix", s.options.ProgressInterval, etcdVersion).Register(srv)
}

// Close ends the work that Open has started. The gRPC server must have stopped.
func (s *Store) Close() error {
	s.end()
	s.ended.Wait()
	if s.lock != nil {
		return s.lock.Close()
	}
	return nil
}

// Collectors returns kine's metrics. They belong to the process: there is one set for all open
// stores.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{metrics.SQLTotal, metrics.SQLTime, metrics.CompactTotal, metrics.InsertErrorsTotal}
}

// TLS names the files that verify a server, and mote's client certificate and key. All may be
// empty.
type TLS struct{ CAFile, CertFile, KeyFile string }

func (t TLS) kine() tls.Config {
	return tls.Config{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile}
}
