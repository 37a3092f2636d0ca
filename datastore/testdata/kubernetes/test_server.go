// Package testserver replaces the package of this name in k8s.io/apiserver for the duration of a
// test: its tests then run against mote's datastore instead of etcd. See TestKubernetes.
package testserver

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"

	"github.com/mote-k8s/mote/datastore"
)

// Config has the fields of etcd's configuration that the tests change.
type Config struct {
	WatchProgressNotifyInterval time.Duration
}

// NewTestConfig returns a configuration for tests that change it.
func NewTestConfig(testing.TB) *Config { return &Config{} }

// RunEtcd serves a new datastore until the test ends, and returns a client of it.
func RunEtcd(t testing.TB, cfg *Config) *kubernetes.Client {
	t.Helper()
	if cfg == nil {
		cfg = &Config{}
	}
	// The names of tests, and so of their directories, have commas, which end an address for gRPC.
	dir, err := os.MkdirTemp("", "store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d, err := datastore.New(datastore.Config{
		Path: filepath.Join(dir, "state.db"), Socket: filepath.Join(dir, "s"),
		ProgressInterval: cfg.WatchProgressNotifyInterval,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := d.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.New(clientv3.Config{Endpoints: []string{d.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	client.KV = storagetesting.NewKVRecorder(client.KV)
	client.Kubernetes = storagetesting.NewKubernetesRecorder(client.Kubernetes)
	return client
}
