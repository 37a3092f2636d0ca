package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/logging"
)

// newDatastoreCommand returns the verbs for the cluster's state.
func newDatastoreCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "datastore",
		Short: "Look at the cluster's state, check it, back it up",
		Long: `Look after the store that the cluster's state is in. Each verb works while mote runs, through its
socket, and while it is stopped, on the files in the data directory; those that need one or the other say so.`,
		GroupID: groupManage,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newDatastoreStatusCommand(e),
		newDatastoreCheckCommand(e),
		newDatastoreSnapshotCommand(e),
		newDatastoreGetCommand(e),
		newDatastoreCompactCommand(e),
		newDatastoreServeCommand(e),
		newDatastoreMigrateCommand(e),
	)
	attend(e, cmd)
	return cmd
}

// attend has all verbs below cmd end with SIGINT and SIGTERM in good order: a store is closed, and what is half done removed. A second
// signal ends them at once. It also routes what libraries log, before any can: left alone, kine prints whole requests, Secrets among them.
func attend(e *env, cmd *cobra.Command) {
	for _, below := range cmd.Commands() {
		attend(e, below)
	}
	if cmd.HasSubCommands() {
		return
	}
	work := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := logging.Setup(e.stderr, nil, "warn", "text"); err != nil {
			return err
		}
		ctx, restore := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer restore()
		context.AfterFunc(ctx, restore)
		cmd.SetContext(ctx)
		err := work(cmd, args)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%s was interrupted", verb(cmd))
		}
		return err
	}
}

// storeDir in the data directory has the datastore's files.
func storeDir(s *settings.Settings) string { return layout.Data(s.DataDir).Datastore() }

// ownEngine tells whether the cluster's state is in mote's own engine.
func ownEngine(s *settings.Settings) bool {
	return s.DatastoreEndpoint == settings.Default("datastore-endpoint")
}

// storePath is the file of mote's own engine.
func storePath(s *settings.Settings) string { return layout.Data(s.DataDir).State() }

// newStore is the datastore that s describes. All parts of one process share one registry of metrics: any
// component's /metrics shows the store's figures too.
func newStore(s *settings.Settings) (*datastore.Datastore, error) {
	store, err := openStore(s, s.DatastoreSocket())
	if err != nil {
		return nil, err
	}
	if err := legacyregistry.Registerer().Register(store.Collector()); err != nil {
		return nil, fmt.Errorf("register the datastore's metrics: %w", err)
	}
	return store, nil
}

// volatile are the keys that s allows to be kept in memory.
func volatile(s *settings.Settings) []string {
	switch s.DatastoreVolatile {
	case "none":
		return []string{}
	case "events":
		return append(datastore.DefaultVolatile(), datastore.VolatileEvents()...)
	}
	return datastore.DefaultVolatile()
}

// openStore is the datastore that s describes, served on socket.
func openStore(s *settings.Settings, socket string) (*datastore.Datastore, error) {
	cfg := storeConfig(s)
	cfg.Socket = socket
	return datastore.New(cfg)
}

func storeConfig(s *settings.Settings) datastore.Config {
	return datastore.Config{
		Endpoint:   s.DatastoreEndpoint,
		CAFile:     s.DatastoreCAFile,
		CertFile:   s.DatastoreCertFile,
		KeyFile:    s.DatastoreKeyFile,
		Path:       storePath(s),
		QuotaBytes: s.DatastoreQuota,
		Volatile:   volatile(s),
		Restore: func() (io.ReadCloser, string, error) {
			cluster, err := snapshot.Fingerprint(layout.Data(s.DataDir).Server())
			if err != nil {
				return nil, "", err
			}
			return snapshot.Newest(s.SnapshotDir, cluster)
		},
	}
}

// withStore calls fn with a connection to the cluster's store: that of the running mote, or else one that is
// opened for as long as fn takes, under the data directory's lock.
func withStore(ctx context.Context, s *settings.Settings, fn func(*grpc.ClientConn) error) error {
	if err := requireRoot("datastore"); err != nil {
		return err
	}
	store, err := openStore(s, s.DatastoreSocket())
	if err != nil {
		return err
	}
	if !strings.HasPrefix(store.Endpoint(), "unix:") {
		return withRunning(ctx, store, fn) // an etcd elsewhere, whether or not mote runs
	}
	pid, err := holderOf(s.DataDir)
	if err != nil {
		return err
	}
	if pid == 0 {
		return withStopped(ctx, s, fn)
	}
	socket := s.DatastoreSocket()
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mote (pid %d) is running on %s, but there is no datastore on %s; wait until it has started, or give its --run-dir", pid, s.DataDir, socket)
	}
	return withConnection("unix://"+socket, fn)
}

func withConnection(endpoint string, fn func(*grpc.ClientConn) error) error {
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<31-1)))
	if err != nil {
		return fmt.Errorf("reach datastore on %s: %w", endpoint, err)
	}
	defer conn.Close()
	return fn(conn)
}

// privateSocket is the name of the datastore's socket in a temporary directory, where only this process looks for it.
const privateSocket = "socket"

// withStopped runs the datastore of a stopped mote, on a socket that nobody else knows.
func withStopped(ctx context.Context, s *settings.Settings, fn func(*grpc.ClientConn) error) (err error) {
	lock, err := lockStopped(s)
	if err != nil {
		return err
	}
	defer lock.close()
	dir, err := os.MkdirTemp("", "mote-datastore-")
	if err != nil {
		return fmt.Errorf("make a folder for the datastore's socket: %w", err)
	}
	defer os.RemoveAll(dir)
	store, err := openStore(s, filepath.Join(dir, privateSocket))
	if err != nil {
		return err
	}
	return withRunning(ctx, store, fn)
}

// holdStore takes the data directory for whoever runs its store: none that is being reset, and one whose restore is finished.
func holdStore(s *settings.Settings) (*dataDirLock, error) {
	if err := checkNoReset(s.DataDir); err != nil {
		return nil, err
	}
	lock, err := lockDataDir(s.DataDir)
	if err != nil {
		return nil, err
	}
	if err := resumeRestore(s); err != nil {
		return nil, errors.Join(err, lock.close())
	}
	return lock, nil
}

// lockStopped takes the data directory of a stopped mote, which must have a store.
func lockStopped(s *settings.Settings) (*dataDirLock, error) {
	if err := checkNoReset(s.DataDir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(storeDir(s)); errors.Is(err, fs.ErrNotExist) && ownEngine(s) {
		return nil, fmt.Errorf("there is no datastore in %s; \"mote server\" makes one, and --data-dir names another", s.DataDir)
	}
	lock, err := takeLock(s.DataDir)
	if err != nil {
		return nil, err
	}
	err = lock.writePID()
	if err == nil {
		err = resumeRestore(s)
	}
	if err != nil {
		return nil, errors.Join(diskHint(err), lock.close())
	}
	return lock, nil
}

// oneArg refuses any number of arguments but one.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("%s needs %s; see \"%s --help\"", verb(cmd), what, cmd.CommandPath())
		case len(args) > 1:
			return fmt.Errorf("%s takes one argument, but got %q too; see \"%s --help\"", verb(cmd), args[1], cmd.CommandPath())
		}
		return nil
	}
}

// parseRevision reads a revision that a person typed.
func parseRevision(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a revision: a number from 1", text)
	}
	return n, nil
}
