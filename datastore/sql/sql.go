// Package sql keeps the store in SQLite, PostgreSQL, MySQL or NATS, through kine as a library.
//
// It owns the choice of drivers, what kine is configured with, and the judgement of endpoints and of servers that do
// not answer. kine does the rest: it keeps a log of revisions in one table (NATS: in one stream), polls it for
// watches, and serves its own bridge of etcd's protocol. Where that differs from etcd: ../README.md, "Engines".
//
// Enter through Parse, which looks at no server; then Probe until the server answers, Open, Register, and Close when the
// gRPC server has stopped. A Store is safe for concurrent use.
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

// What kine itself has by default, and what years of k3s have run with.
const (
	// compactInterval is how often kine gives up history, that of the interval before. It ignores when the apiserver
	// asks for it.
	compactInterval = 5 * time.Minute
	compactTimeout  = 5 * time.Second
	// compactRetain is how many revisions are kept in any case.
	compactRetain = 1000
	compactBatch  = 1000
	pollBatch     = 500
)

// openTimeout is for a server that has just answered: kine makes its table in it.
const openTimeout = time.Minute

// etcdVersion is what clients are told: of etcd 3.5.12 the apiserver knows that watches cannot be asked for their progress,
// and takes consistent lists from the store instead of from its cache. kine can be asked, but answers up to a second
// late, when it polls, and looks only at the last of the queues that an event passes on its way to the client.
const etcdVersion = "3.5.12"

// Options are what the protocol's face needs to know.
type Options struct {
	// ProgressInterval is how often watches are told the current revision.
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

// Open opens the store at e, and makes database and table when they are missing.
func Open(ctx context.Context, e Endpoint, o Options) (*Store, error) {
	return open(ctx, e, o, server.Backend.Start)
}

// open ends with start, which makes kine's own rows and begins its work.
func open(ctx context.Context, e Endpoint, o Options, start func(server.Backend, context.Context) error) (_ *Store, err error) {
	// kine's context is the life of the store, not of this call.
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
		// The driver's default writes to stderr. What it says there, its callers are told as errors too.
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

// prepareFile makes SQLite's file with the mode that it is to have, and locks it: kine does not expect that others write.
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
	// Closing any descriptor of the file itself would end the locks that SQLite has on it.
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

// Close ends what Open began. The gRPC server must have stopped.
func (s *Store) Close() error {
	s.end()
	s.ended.Wait()
	if s.lock != nil {
		return s.lock.Close()
	}
	return nil
}

// Collectors are kine's figures. They are of the process: there is one set, however many stores are open.
func Collectors() []prometheus.Collector {
	return []prometheus.Collector{metrics.SQLTotal, metrics.SQLTime, metrics.CompactTotal, metrics.InsertErrorsTotal}
}

// TLS names the files with which a server is verified, and we before it. All may be empty.
type TLS struct{ CAFile, CertFile, KeyFile string }

func (t TLS) kine() tls.Config {
	return tls.Config{CAFile: t.CAFile, CertFile: t.CertFile, KeyFile: t.KeyFile}
}
