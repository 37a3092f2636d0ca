package datastore_test

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-k8s/mote/internal/logging"
)

// TestValuesAreNotLogged: kine logs each request that fails with all that is in it.
func TestValuesAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	before, out := slog.Default(), logrus.StandardLogger().Out
	formatter, hooks := logrus.StandardLogger().Formatter, logrus.StandardLogger().Hooks
	require.NoError(t, logging.Setup(&log, "debug", "text"))
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
	secret := "swordfish" + string(make([]byte, 1536<<10))
	_, err := client.Put(t.Context(), "/registry/secrets/a", secret)
	require.Error(t, err)
	_, err = client.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision("/registry/secrets/a"), "=", 0)).
		Then(clientv3.OpPut("/registry/secrets/a", secret)).Commit()
	require.Error(t, err)
	stop()
	require.Contains(t, log.String(), "datastore opened")
	require.NotContains(t, log.String(), "swordfish")
}
