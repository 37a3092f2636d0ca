package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/internal/logging"
	"github.com/mote-k8s/mote/machine"
)

// serveOptions are the flags of datastore serve.
type serveOptions struct {
	address string
	path    string
	listen  datastore.Listen
}

// newDatastoreServeCommand returns the verb that runs the store without a cluster.
func newDatastoreServeCommand(e *env) *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve --listen ADDR",
		Short: "Run the store alone, for debugging or for another cluster",
		Long: `Serve the store on ADDR to any client of etcd, until SIGTERM or ^C: a unix socket (unix:///PATH), which its owner
alone can open, or an address and port. Whoever reaches it owns what is in it: beyond loopback, clients need a certificate of --client-ca-file.
It is the part of etcd's protocol that Kubernetes uses. Mote must be stopped, unless --path names another file.`,
		Example: `  mote datastore serve --listen unix:///tmp/store.sock
  mote datastore serve --path /srv/state.db --listen 0.0.0.0:2379 \
    --cert-file server.crt --key-file server.key --client-ca-file clients.crt`,
		Args: noArgs,
	}
	flags := cmd.Flags()
	flags.StringVar(&o.address, "listen", "", "`ADDR` to serve on: unix:///PATH, or IP:PORT")
	flags.StringVar(&o.path, "path", "", "`file` of the store, which is made when missing (default: datastore/state.db in data-dir)")
	flags.StringVar(&o.listen.CertFile, "cert-file", "", "the server's certificate, a PEM `file`")
	flags.StringVar(&o.listen.KeyFile, "key-file", "", "its private key, a PEM `file`")
	flags.StringVar(&o.listen.ClientCAFile, "client-ca-file", "", "authorities of the clients that are let in, a PEM `file`")
	load := withSettings(cmd, e, "datastore serve")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if o.address == "" {
			return fmt.Errorf("%s needs an address, such as --listen unix:///run/store.sock or --listen 127.0.0.1:2379", verb(cmd))
		}
		return serveStore(cmd.Context(), e, m, o)
	}
	return cmd
}

func serveStore(ctx context.Context, e *env, m *machine.Machine, o serveOptions) (err error) {
	if _, err := logging.Setup(e.stderr, nil, m.LogLevel, m.LogFormat); err != nil {
		return err
	}
	cfg := m.StoreConfig()
	// always mote's own engine, whatever engine the cluster uses
	cfg.Endpoint, cfg.CAFile, cfg.CertFile, cfg.KeyFile = "", "", "", ""
	cfg.Listen = o.listen
	if o.path != "" {
		cfg.Restore = nil // the cluster's snapshots belong to another store
		if cfg.Path, err = filepath.Abs(o.path); err != nil {
			return fmt.Errorf("find %s: %w", o.path, err)
		}
	}
	socket, isSocket := strings.CutPrefix(o.address, "unix://")
	if isSocket {
		cfg.Socket = socket
	} else {
		// The component always needs a private socket of its own.
		dir, err := os.MkdirTemp("", "mote-datastore-")
		if err != nil {
			return fmt.Errorf("make a folder for the datastore's socket: %w", err)
		}
		defer os.RemoveAll(dir)
		cfg.Socket = filepath.Join(dir, machine.PrivateSocket)
		cfg.Listen.Address = o.address
	}
	store, err := datastore.New(cfg)
	if err != nil {
		return err
	}
	if o.path == "" {
		lock, err := m.HoldStore()
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	return runStore(ctx, e, store, o)
}

// runStore runs store until ctx ends, and prints a line when it serves.
func runStore(ctx context.Context, e *env, store *datastore.Datastore, o serveOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- store.Run(ctx)
		cancel()
	}()
	err := store.Ready(ctx)
	if err == nil {
		fmt.Fprintf(e.stderr, "Serving on %s; stop with ^C\n", o.address)
		if o.path != "" { // no server will start that could report more than the log has
			err = store.RepairsReported()
		}
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		cancel()
		return errors.Join(err, <-ended)
	}
	return <-ended
}
