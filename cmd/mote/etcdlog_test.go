package main

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
)

// lockedBuffer is a buffer that goroutines may write to after the test has ended.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestEtcdClientLogsHere checks that the apiserver's etcd client, whose logger cannot be set,
// writes into the one log. It fails if internal/logging is initialised after the package that makes
// that logger.
func TestEtcdClientLogsHere(t *testing.T) {
	var log lockedBuffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewJSONHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	socket := filepath.Join(t.TempDir(), "kv.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	etcdserverpb.RegisterKVServer(server, &etcdserverpb.UnimplementedKVServer{})
	go server.Serve(l)
	t.Cleanup(server.Stop)
	cfg := storagebackend.NewDefaultConfig("/registry", nil)
	cfg.Transport.ServerList = []string{"unix://" + socket}
	check, err := factory.CreateHealthCheck(*cfg, stop)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_ = check() // fails: this server has no methods
		return strings.Contains(log.String(), `"component":"kube-apiserver","client":"etcd"`)
	}, time.Minute, 10*time.Millisecond)
}
