package datastore_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-k8s/mote/internal/logging"
)

// TestValuesAreNotLogged checks that no stored value reaches the log: kine logs each failed request
// with all of its contents.
func TestValuesAreNotLogged(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log")) // kine's goroutines end after the store
	require.NoError(t, err)
	defer log.Close()
	before, out := slog.Default(), logrus.StandardLogger().Out
	formatter, hooks := logrus.StandardLogger().Formatter, logrus.StandardLogger().Hooks
	_, err = logging.Setup(log, nil, "debug", "text")
	require.NoError(t, err)
	t.Cleanup(func() {
		slog.SetDefault(before)
		logrus.SetOutput(out)
		logrus.SetFormatter(formatter)
		logrus.StandardLogger().ReplaceHooks(hooks)
	})
	cfg := config(t.TempDir())
	cfg.Endpoint = "sqlite"
	d, stop := serveConfig(t, cfg)
	client := clientOf(t, d)
	const key, secret = "/registry/secrets/a", "swordfish"
	_, err = client.Put(t.Context(), key, secret, clientv3.WithIgnoreLease())
	require.Error(t, err)
	put := clientv3.OpPut(key, secret)
	_, err = client.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(put, clientv3.OpPut(key+"2", secret)).Commit()
	require.Error(t, err)
	stop()
	text, err := os.ReadFile(log.Name())
	require.NoError(t, err)
	require.Contains(t, string(text), "datastore opened")
	require.NotContains(t, string(text), secret)
}
