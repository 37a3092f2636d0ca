// Package datastore gives the apiserver an etcd v3 endpoint on a private unix socket.
//
// It owns the socket and the life of what serves it: package etcd speaks the protocol, package bolt is the
// storage engine. Enter through New; the Datastore is a component.Component. Endpoint may be called at
// any time from any goroutine.
package datastore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/component"
)

// Datastore is the store and its endpoint as one component.
type Datastore struct {
	cfg Config
	// serving is closed once the socket accepts connections.
	serving chan struct{}
	// store is for the metrics.
	store atomic.Pointer[bolt.Store]
}

var _ component.Component = (*Datastore)(nil)

// New validates cfg. It touches no file.
func New(cfg Config) (*Datastore, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Volatile == nil {
		cfg.Volatile = DefaultVolatile()
	}
	return &Datastore{cfg: cfg, serving: make(chan struct{})}, nil
}

// Name implements component.Component.
func (d *Datastore) Name() string { return "datastore" }

// Endpoint is where the store is served, as an etcd client wants it: unix:///run/mote/sockets/datastore.sock.
func (d *Datastore) Endpoint() string { return "unix://" + d.cfg.Socket }

// Run opens the store and serves it until ctx ends. It may be called once.
func (d *Datastore) Run(ctx context.Context) (err error) {
	start := time.Now()
	store, err := bolt.Open(d.cfg.Path, bolt.Options{
		ProgressInterval: d.cfg.ProgressInterval, Volatile: d.cfg.Volatile, QuotaBytes: d.cfg.QuotaBytes, Restore: d.cfg.Restore,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	listener, err := listen(ctx, d.cfg.Socket)
	if err != nil {
		return err
	}
	d.store.Store(store)
	further, err := d.cfg.Listen.listen(ctx)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	srv := newServer(store)
	inspector{store, d.cfg.Path}.register(srv.grpc)
	served := make(chan error, 2)
	for _, l := range append(further, listener) {
		go func() { served <- srv.grpc.Serve(l) }()
	}
	defer srv.stop()
	close(d.serving)
	slog.Info("datastore opened", "component", d.Name(), "path", d.cfg.Path,
		"revision", store.Revision(), "took", time.Since(start))

	select {
	case <-ctx.Done():
		return nil
	case err := <-served:
		return fmt.Errorf("serve datastore on %s: %w", d.cfg.Socket, err)
	case <-store.Failed():
		return store.Failure()
	}
}

// Repairs are what opening the store had to repair. It may be called at any time; before the store is open there are none.
func (d *Datastore) Repairs() []bolt.Repair {
	if store := d.store.Load(); store != nil {
		return store.Repairs()
	}
	return nil
}

// Snapshot is the store as a snapshot.Source. It may be called when the store is ready.
func (d *Datastore) Snapshot(ctx context.Context) (*snapshot.Stream, error) {
	if d.store.Load() == nil {
		return nil, snapshot.ErrUnserved
	}
	conn, err := grpc.NewClient(d.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("datastore endpoint %s: %w", d.Endpoint(), err)
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	return snapshot.FromConnection(conn)(ctx)
}

// Ready implements component.Component: it blocks until a read through the socket is answered.
func (d *Datastore) Ready(ctx context.Context) error {
	select {
	case <-d.serving:
	case <-ctx.Done():
		return fmt.Errorf("datastore %s is not open yet: %w", d.cfg.Path, ctx.Err())
	}
	conn, err := grpc.NewClient(d.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("datastore endpoint %s: %w", d.Endpoint(), err)
	}
	defer conn.Close()
	_, err = etcdserverpb.NewKVClient(conn).Range(ctx,
		&etcdserverpb.RangeRequest{Key: []byte("/registry/health")}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("datastore on %s does not answer: %w", d.cfg.Socket, err)
	}
	return nil
}
