package datastore_test

import (
	"context"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashChildEnv); dir != "" {
		serveUntilKilled(dir)
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	logrus.SetOutput(io.Discard) // kine's
	goleak.VerifyTestMain(m,
		// kine never ends the goroutine that waits for a poll that will not come, nor the
		// connection that created a database.
		goleak.IgnoreAnyFunction("github.com/k3s-io/kine/pkg/logstructured/sqllog.(*SQLLog).WaitForSyncTo"),
		// kine's watcher of leases may begin a watch while the store is being closed, and never
		// ends it.
		goleak.IgnoreAnyFunction("github.com/k3s-io/kine/pkg/logstructured.(*LogStructured).Watch.func1"),
		goleak.IgnoreAnyFunction("github.com/go-sql-driver/mysql.(*mysqlConn).startWatcher.func1"))
}

func config(dir string) datastore.Config {
	return datastore.Config{Path: filepath.Join(dir, "datastore", "state.db"), Socket: filepath.Join(dir, "run", "datastore.sock")}
}

// serve runs a datastore in dir until stop is called.
func serve(t testing.TB, dir string) (d *datastore.Datastore, stop func()) {
	t.Helper()
	return serveConfig(t, config(dir))
}

func serveConfig(t testing.TB, cfg datastore.Config) (d *datastore.Datastore, stop func()) {
	t.Helper()
	d, err := datastore.New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- d.Run(ctx)
		cancel() // a store that did not open never becomes ready
	}()
	if err := d.Ready(ctx); err != nil {
		require.NoError(t, <-ended)
		require.NoError(t, err)
	}
	return d, func() {
		cancel()
		require.NoError(t, <-ended)
	}
}

func TestSuite(t *testing.T) {
	storetest.Run(t, openDatastore, nil)
}

var benchDir = flag.String("bench.dir", "", "folder for the benchmarks' stores, to compare disks")

func BenchmarkDatastore(b *testing.B) { storetest.Bench(b, benchFolder(b), openDatastore) }

func benchFolder(b *testing.B) string {
	if *benchDir != "" {
		return *benchDir
	}
	return b.TempDir()
}

func openDatastore(t testing.TB, dir string) (string, func()) {
	d, stop := serve(t, dir)
	return d.Endpoint(), stop
}

func TestSocketIsPrivate(t *testing.T) {
	dir := t.TempDir()
	_, stop := serve(t, dir)
	for path, mode := range map[string]os.FileMode{
		"run": 0o700, "run/datastore.sock": 0o600, "datastore": 0o700, "datastore/state.db": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, path))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
	}
	stop()
	require.NoFileExists(t, config(dir).Socket)
}

func TestSecondDatastoreIsRefused(t *testing.T) {
	dir := t.TempDir()
	_, stop := serve(t, dir)
	defer stop()
	cfg := config(dir)
	require.ErrorContains(t, run(t, cfg), "another process has it open; stop the other mote")
	cfg.Path = filepath.Join(dir, "other", "state.db")
	require.ErrorContains(t, run(t, cfg), "another process serves it; stop the other mote")
}

func TestSocketPathIsTaken(t *testing.T) {
	cfg := config(t.TempDir())
	require.NoError(t, os.MkdirAll(cfg.Socket, 0o700))
	require.ErrorContains(t, run(t, cfg), "it is not a socket; move it away")
}

func TestConfigIsValidated(t *testing.T) {
	for _, cfg := range []datastore.Config{
		{}, {Path: "/a"}, {Path: "a", Socket: "/b"},
		{Path: "/a", Socket: "/" + string(make([]byte, 200))},
	} {
		_, err := datastore.New(cfg)
		require.Error(t, err, "%+v", cfg)
	}
}

func run(t *testing.T, cfg datastore.Config) error {
	d, err := datastore.New(cfg)
	require.NoError(t, err)
	return d.Run(t.Context())
}
