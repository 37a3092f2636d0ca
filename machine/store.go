package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/version"
	"github.com/mote-k8s/mote/machine/settings"
)

// StoreDir returns the directory of the datastore's files, in the data directory.
func (m *Machine) StoreDir() string { return m.data().Datastore() }

// OwnEngine reports whether the cluster's state is in mote's own engine.
func (m *Machine) OwnEngine() bool {
	return m.DatastoreEndpoint == settings.Default("datastore-endpoint")
}

// StorePath returns the path of the file of mote's own engine.
func (m *Machine) StorePath() string { return m.data().State() }

// newStore returns the datastore that the settings describe. It registers its metrics in the
// registry of the process, which kube-apiserver serves.
func (m *Machine) newStore() (*datastore.Datastore, error) {
	store, err := m.OpenStore(m.DatastoreSocket())
	if err != nil {
		return nil, err
	}
	if err := legacyregistry.Registerer().Register(store.Collector()); err != nil {
		return nil, fmt.Errorf("register the datastore's metrics: %w", err)
	}
	return store, nil
}

// volatile returns the keys that the settings allow to be kept in memory.
func (m *Machine) volatile() []string {
	switch m.DatastoreVolatile {
	case "none":
		return []string{}
	case "events":
		return append(datastore.DefaultVolatile(), datastore.VolatileEvents()...)
	}
	return datastore.DefaultVolatile()
}

// OpenStore returns the datastore that the settings describe, served on socket.
func (m *Machine) OpenStore(socket string) (*datastore.Datastore, error) {
	cfg := m.StoreConfig()
	cfg.Socket = socket
	return datastore.New(cfg)
}

func (m *Machine) StoreConfig() datastore.Config {
	return datastore.Config{
		Endpoint:   m.DatastoreEndpoint,
		CAFile:     m.DatastoreCAFile,
		CertFile:   m.DatastoreCertFile,
		KeyFile:    m.DatastoreKeyFile,
		Path:       m.StorePath(),
		QuotaBytes: m.DatastoreQuota,
		Volatile:   m.volatile(),
		Restore: func() (io.ReadCloser, string, error) {
			cluster, err := snapshot.Fingerprint(m.data().Server())
			if err != nil {
				return nil, "", err
			}
			return snapshot.Newest(m.SnapshotDir, cluster)
		},
	}
}

// WithStore calls fn with a connection to the cluster's store: that of the running mote, or else
// one that WithStore runs until fn returns, under the data directory's lock.
func (m *Machine) WithStore(ctx context.Context, fn func(*grpc.ClientConn) error) error {
	if err := RequireRoot("datastore"); err != nil {
		return err
	}
	store, err := m.OpenStore(m.DatastoreSocket())
	if err != nil {
		return err
	}
	if !strings.HasPrefix(store.Endpoint(), "unix:") {
		return WithServed(ctx, store, fn) // an external etcd, whether or not mote runs
	}
	pid, err := holderOf(m.DataDir)
	if err != nil {
		return err
	}
	if pid == 0 {
		return m.withStopped(ctx, fn)
	}
	socket := m.DatastoreSocket()
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mote (pid %d) is running on %s, but there is no datastore on %s; wait until it has started, or give its --run-dir", pid, m.DataDir, socket)
	}
	return WithConnection("unix://"+socket, fn)
}

// WithConnection calls fn with a connection to the datastore at endpoint.
func WithConnection(endpoint string, fn func(*grpc.ClientConn) error) error {
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<31-1)))
	if err != nil {
		return fmt.Errorf("reach datastore on %s: %w", endpoint, err)
	}
	defer conn.Close()
	return fn(conn)
}

// PrivateSocket is the name of the datastore's socket in a temporary directory that only this
// process knows.
const PrivateSocket = "socket"

// withStopped runs the datastore of a stopped mote, on a private socket.
func (m *Machine) withStopped(ctx context.Context, fn func(*grpc.ClientConn) error) (err error) {
	lock, err := m.LockStopped()
	if err != nil {
		return err
	}
	defer lock.Close()
	dir, err := os.MkdirTemp("", "mote-datastore-")
	if err != nil {
		return fmt.Errorf("make a folder for the datastore's socket: %w", err)
	}
	defer os.RemoveAll(dir)
	store, err := m.OpenStore(filepath.Join(dir, PrivateSocket))
	if err != nil {
		return err
	}
	return WithServed(ctx, store, fn)
}

// HoldStore locks the data directory for a process that runs its store. It refuses a directory that
// is being reset, and finishes an interrupted restore.
func (m *Machine) HoldStore() (*Lock, error) {
	if err := checkNoReset(m.DataDir); err != nil {
		return nil, err
	}
	lock, err := lockDataDir(m.DataDir)
	if err != nil {
		return nil, err
	}
	if err := m.resumeRestore(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// LockStopped locks the data directory of a stopped mote, which must have a store.
func (m *Machine) LockStopped() (*Lock, error) {
	if err := checkNoReset(m.DataDir); err != nil {
		return nil, err
	}
	if _, err := os.Stat(m.StoreDir()); errors.Is(err, fs.ErrNotExist) && m.OwnEngine() {
		return nil, fmt.Errorf("there is no datastore in %s; \"mote server\" makes one, and --data-dir names another", m.DataDir)
	}
	lock, err := takeLock(m.DataDir)
	if err != nil {
		return nil, err
	}
	err = lock.writePID()
	if err == nil {
		err = m.resumeRestore()
	}
	if err != nil {
		return nil, errors.Join(DiskHint(err), lock.Close())
	}
	return lock, nil
}

// resumeRestore finishes an interrupted restore, under the data directory's lock.
func (m *Machine) resumeRestore() error {
	done, resumed, err := snapshot.Resume(m.DataDir)
	if err != nil {
		return DiskHint(err)
	}
	if resumed {
		slog.Warn("an interrupted restore of a snapshot was finished", "component", "mote",
			"revision", done.Revision, "time", done.Time, "node", done.Node, "replaced", strings.Join(done.Replaced, " "))
	}
	return nil
}

// SnapshotOrigin returns the description of this machine for its snapshots.
func (m *Machine) SnapshotOrigin() snapshot.Origin {
	v := version.Get()
	return snapshot.Origin{
		ServerDir: m.data().Server(), Mote: v.Mote, Kubernetes: v.Kubernetes, Node: m.NodeNameOf(), Recipients: m.SnapshotRecipients,
	}
}

// Images connects to the image store of the running mote. The error wraps ErrNotRunning if none
// runs.
func (m *Machine) Images() (*agent.ImageStore, error) {
	if err := requireSocket(m.ContainerdSocket()); err != nil {
		return nil, err
	}
	return agent.OpenImages(m.ContainerdSocket())
}

// requireSocket reports a missing containerd at once and in mote's words; containerd's client would
// do so after a timeout and in other words.
func requireSocket(path string) error {
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (no containerd on %s); start it with \"mote server\"", ErrNotRunning, path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("reach containerd: %w; run as root", err)
	}
	return fmt.Errorf("reach containerd: %w", err)
}

// WithServed calls fn with a connection to a store that runs until fn returns.
func WithServed(outer context.Context, store *datastore.Datastore, fn func(*grpc.ClientConn) error) (err error) {
	ctx, cancel := context.WithCancel(outer)
	ended := make(chan error, 1)
	go func() {
		ended <- store.Run(ctx)
		cancel() // a store that cannot be opened will never be ready
	}()
	defer func() {
		cancel()
		err = errors.Join(<-ended, err)
	}()
	if err := store.Ready(ctx); err != nil {
		if ctx.Err() != nil && outer.Err() == nil {
			return nil // Run returns the reason
		}
		return err
	}
	client, err := store.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	return fn(client.ActiveConnection())
}

// RestoreSnapshot replaces the state and the keys in the data directory of a stopped mote with
// those of the snapshot in the file path.
func (m *Machine) RestoreSnapshot(ctx context.Context, path string, keys snapshot.Keys, progress snapshot.Progress) (snapshot.Restored, error) {
	var done snapshot.Restored
	if !m.OwnEngine() {
		return done, errors.New("datastore-endpoint names another database, and a snapshot is of mote's own: restore with --datastore-endpoint=bolt, then move the state there with \"mote datastore migrate\"")
	}
	if err := checkNoReset(m.DataDir); err != nil {
		return done, err
	}
	pid, err := m.Holder()
	if err != nil {
		return done, err
	}
	if pid != 0 {
		return done, fmt.Errorf("mote is running on %s (pid %d); stop it with \"mote stop\", then restore", m.DataDir, pid)
	}
	lock, err := lockDataDir(m.DataDir)
	if err != nil {
		return done, err
	}
	defer lock.Close()
	done, err = snapshot.Restore(ctx, path, m.DataDir, keys, progress)
	if errors.Is(err, snapshot.ErrDamaged) {
		err = fmt.Errorf("%w; nothing was changed; \"mote datastore snapshot list\" shows others", err)
	}
	return done, err
}
