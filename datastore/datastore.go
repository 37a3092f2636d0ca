// Package datastore gives the apiserver an etcd v3 endpoint: on a private unix socket, or the
// endpoint of an external etcd.
//
// It owns the socket, the choice of the storage engine and the engine's lifecycle. The engines are
// package bolt, served by package etcd; package sql (SQLite, PostgreSQL, MySQL, NATS), served by
// kine; or an external etcd, which this package only probes. Enter through New; the Datastore is a
// component.Component. Endpoint and String are safe to call at any time from any goroutine.
package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/datastore/sql"
	"github.com/mote-k8s/mote/internal/component"
)

const (
	// reachTimeout is the time in which an external server must answer at start: long enough for a
	// machine that was switched on at the same time as this one.
	reachTimeout = 2 * time.Minute
	// reachInterval is the time between two probes.
	reachInterval = time.Second
	// healthKey is the key that the apiserver reads to check the health of its store.
	healthKey = "/registry/health"
)

// Datastore runs the store and its endpoint as one component.
type Datastore struct {
	cfg    Config
	engine engine
	// serving is closed once the endpoint answers.
	serving chan struct{}
	// missing is the error that Ready returns until then.
	missing atomic.Pointer[error]
	// bolt is for the metrics; it is nil with other engines.
	bolt atomic.Pointer[bolt.Store]
}

var (
	_ component.Component = (*Datastore)(nil)
	_ component.Troubled  = (*Datastore)(nil)
)

// New validates cfg. It reads the TLS files, touches no other file and contacts no server.
func New(cfg Config) (*Datastore, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Volatile == nil {
		cfg.Volatile = DefaultVolatile()
	}
	if cfg.ProgressInterval <= 0 {
		cfg.ProgressInterval = defaultProgressInterval
	}
	engine, err := newEngine(cfg)
	if err != nil {
		return nil, err
	}
	return &Datastore{cfg: cfg, engine: engine, serving: make(chan struct{})}, nil
}

// Name implements component.Component.
func (d *Datastore) Name() string { return "datastore" }

// String names the engine and its address, without passwords: "postgres at 10.0.0.5:5432, database
// kubernetes".
func (d *Datastore) String() string { return d.engine.String() }

// Endpoint returns the address for an etcd client: unix:///run/mote/sockets/datastore.sock, or the
// URLs of an external etcd, joined by commas. An external etcd needs the TLS files of Config.
func (d *Datastore) Endpoint() string {
	if _, elsewhere := d.engine.(remote); elsewhere {
		return d.cfg.Endpoint
	}
	return "unix://" + d.cfg.Socket
}

// HasState reports whether an earlier start left a store on this machine. It does not know the
// state of an external database and returns false for it.
func (d *Datastore) HasState() (bool, error) {
	file := d.engine.file()
	if file == "" {
		return false, nil
	}
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Run opens the store and serves it until ctx ends. Call it only once.
func (d *Datastore) Run(ctx context.Context) (err error) {
	start := time.Now()
	if err := d.reach(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	store, err := d.engine.open(ctx)
	if err != nil {
		return err
	}
	if store == nil {
		if err := d.checkWhole(ctx); err != nil {
			return err
		}
		close(d.serving)
		slog.Info("datastore is elsewhere", "component", d.Name(), "engine", d.String(), "took", time.Since(start))
		<-ctx.Done()
		return nil
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	listener, err := listen(ctx, d.cfg.Socket)
	if err != nil {
		return err
	}
	further, err := d.cfg.Listen.listen(ctx)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	srv := newServer(store)
	served := make(chan error, 2)
	for _, l := range append(further, listener) {
		go func() { served <- srv.grpc.Serve(l) }()
	}
	defer srv.stop()
	attrs := []any{"component", d.Name(), "engine", d.String(), "took", time.Since(start)}
	if ours, ok := store.(boltStore); ok {
		d.bolt.Store(ours.Store)
		attrs = append(attrs, "revision", ours.Revision())
	}
	if err := d.checkWhole(ctx); err != nil {
		return err
	}
	close(d.serving)
	slog.Info("datastore opened", attrs...)

	select {
	case <-ctx.Done():
		return nil
	case err := <-served:
		return fmt.Errorf("serve datastore on %s: %w", d.cfg.Socket, err)
	case <-store.failed():
		return store.failure()
	}
}

// Repairs returns the repairs of this start, and earlier repairs since RepairsReported was last
// called. It may be called at any time. It returns nothing before the store is open, and for
// engines other than bolt.
func (d *Datastore) Repairs() []rescue.Repair {
	if store := d.bolt.Load(); store != nil {
		return store.Repairs()
	}
	return nil
}

// RepairsReported records that the Repairs have been reported to the operator: a later start does
// not return them again.
func (d *Datastore) RepairsReported() error {
	if store := d.bolt.Load(); store != nil {
		return store.RepairsReported()
	}
	return nil
}

// Trouble implements component.Troubled. A store with damage serves everything that it can still
// read.
func (d *Datastore) Trouble() []string {
	store := d.bolt.Load()
	if store == nil {
		return nil
	}
	var list []string
	if store.NoSpace() {
		list = append(list, "writes are refused: the disk is full, or the quota exceeded; it ends when there is room")
	}
	if store.Damaged() {
		list = append(list, "damaged: what is hit is not answered; restart mote, which repairs its datastore or says what to do")
	}
	return list
}

// Snapshot implements snapshot.Source for the store. Call it only once the store is ready.
func (d *Datastore) Snapshot(ctx context.Context) (*snapshot.Stream, error) {
	if d.bolt.Load() == nil {
		return nil, snapshot.ErrUnserved
	}
	conn, err := grpc.NewClient(d.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("datastore endpoint %s: %w", d.Endpoint(), err)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	return snapshot.FromConnection(conn)(ctx)
}

// checkWhole refuses to serve a store that is the target of an unfinished migration.
func (d *Datastore) checkWhole(ctx context.Context) error {
	if d.cfg.Above > 0 {
		return nil // the migration is still running
	}
	client, err := d.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	marker, err := client.Get(ctx, markerKey)
	switch {
	case ctx.Err() != nil:
		return nil // stopped
	case err != nil:
		return fmt.Errorf("read from %s: %w", d, err)
	case len(marker.Kvs) > 0:
		return fmt.Errorf("%s holds an unfinished migration; run \"mote datastore migrate\" again", d)
	}
	return nil
}

// reach waits until the storage engine's server answers.
func (d *Datastore) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, reachTimeout, errUnreachable)
	defer cancel()
	again := time.NewTicker(reachInterval)
	defer again.Stop()
	for {
		err := d.engine.probe(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, sql.ErrRefused):
			return fmt.Errorf("%s: %w", d, err)
		case d.missing.Swap(&err) == nil:
			slog.Warn("waiting for the datastore's server", "component", d.Name(), "engine", d.String(), "for", reachTimeout, "err", err)
		}
		select {
		case <-again.C:
			continue
		case <-ctx.Done():
		}
		if errors.Is(context.Cause(ctx), errUnreachable) {
			return fmt.Errorf("%s did not answer for %s; is it running, and is datastore-endpoint right? (%w)", d, reachTimeout, err)
		}
		return nil // stopped
	}
}

var errUnreachable = errors.New("the datastore's server does not answer")

// Ready implements component.Component. It blocks until a read through the socket succeeds. An
// external etcd has already answered by then.
func (d *Datastore) Ready(ctx context.Context) error {
	select {
	case <-d.serving:
	case <-ctx.Done():
		if missing := d.missing.Load(); missing != nil {
			return fmt.Errorf("%s does not answer yet: %w", d, *missing)
		}
		return fmt.Errorf("datastore, %s, is not open yet: %w", d, ctx.Err())
	}
	if _, elsewhere := d.engine.(remote); elsewhere {
		return nil
	}
	conn, err := grpc.NewClient(d.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("datastore endpoint %s: %w", d.Endpoint(), err)
	}
	defer conn.Close()
	_, err = etcdserverpb.NewKVClient(conn).Range(ctx,
		&etcdserverpb.RangeRequest{Key: []byte(healthKey)}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("datastore on %s does not answer: %w", d.cfg.Socket, err)
	}
	return nil
}
