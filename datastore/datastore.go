// Package datastore gives the apiserver an etcd v3 endpoint: on a private unix socket, or that of an etcd elsewhere.
//
// It owns the socket, the choice of what keeps the data and the life of it: package bolt, served by package etcd; or package
// sql (SQLite, PostgreSQL, MySQL, NATS), served by kine; or an etcd of others, which is only looked at. Enter
// through New; the Datastore is a component.Component. Endpoint and String may be called at any time from any goroutine.
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
	// reachTimeout is how long a server of others may take to answer at start: that of a machine which was
	// switched on together with ours.
	reachTimeout = 2 * time.Minute
	// reachInterval is between two questions.
	reachInterval = time.Second
	// healthKey is what the apiserver reads to see whether its store is well.
	healthKey = "/registry/health"
)

// Datastore is the store and its endpoint as one component.
type Datastore struct {
	cfg    Config
	engine engine
	// serving is closed once the endpoint answers.
	serving chan struct{}
	// missing is what Ready says meanwhile.
	missing atomic.Pointer[error]
	// bolt is for the metrics; nil with other engines.
	bolt atomic.Pointer[bolt.Store]
}

var (
	_ component.Component = (*Datastore)(nil)
	_ component.Troubled  = (*Datastore)(nil)
)

// New validates cfg. It touches no file and asks no server, but TLS files are read.
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

// String says what keeps the data, without passwords: "postgres at 10.0.0.5:5432, database kubernetes".
func (d *Datastore) String() string { return d.engine.String() }

// Endpoint is where the store is served, as an etcd client wants it: unix:///run/mote/sockets/datastore.sock, or the
// URLs of an etcd elsewhere, joined by commas. For the latter Config's TLS files are needed.
func (d *Datastore) Endpoint() string {
	if _, elsewhere := d.engine.(remote); elsewhere {
		return d.cfg.Endpoint
	}
	return "unix://" + d.cfg.Socket
}

// HasState reports whether an earlier start left a store on this machine. Of a database elsewhere it
// knows nothing, and says false.
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

// Run opens the store and serves it until ctx ends. It may be called once.
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

// Repairs returns what this start of the store had to repair, and earlier repairs since
// RepairsReported was last called. It may be called at any time; before the store is open, and for
// other engines than bolt, there are none.
func (d *Datastore) Repairs() []rescue.Repair {
	if store := d.bolt.Load(); store != nil {
		return store.Repairs()
	}
	return nil
}

// RepairsReported says that the Repairs have been reported to whoever looks after the store: a
// later start does not return them again.
func (d *Datastore) RepairsReported() error {
	if store := d.bolt.Load(); store != nil {
		return store.RepairsReported()
	}
	return nil
}

// Trouble implements component.Troubled: the store serves what it can.
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

// Snapshot is the store as a snapshot.Source. It may be called when the store is ready.
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

// checkWhole refuses to serve a store that has been copied in part.
func (d *Datastore) checkWhole(ctx context.Context) error {
	if d.cfg.Above > 0 {
		return nil // it is being copied
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

// reach waits until what keeps the data answers.
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

// Ready implements component.Component: it blocks until a read through the socket is answered. An etcd
// elsewhere has answered by then.
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
