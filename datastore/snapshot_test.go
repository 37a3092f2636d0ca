package datastore_test

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/datastore/snapshot"
)

func etcdClient(t *testing.T, d *datastore.Datastore) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{d.Endpoint()}, Context: t.Context()})
	require.NoError(t, err)
	return client
}

// fill writes values that do not compress, so that streams do not fit into the buffers of the
// connection.
func fill(t *testing.T, client *clientv3.Client) {
	t.Helper()
	for i := range 16 {
		value := make([]byte, 1<<20)
		_, err := rand.Read(value)
		require.NoError(t, err)
		_, err = client.Put(t.Context(), fmt.Sprintf("/fill/%d", i), string(value))
		require.NoError(t, err)
	}
}

// TestSnapshotForEtcdsClient checks that "etcdctl snapshot save" receives the store's file followed
// by its checksum.
func TestSnapshotForEtcdsClient(t *testing.T) {
	d, stop := serve(t, t.TempDir())
	defer stop()
	client := etcdClient(t, d)
	defer client.Close()
	put, err := client.Put(t.Context(), "/a", "1")
	require.NoError(t, err)
	resp, err := client.SnapshotWithVersion(t.Context())
	require.NoError(t, err)
	require.Equal(t, put.Header.Revision, resp.Header.Revision)
	data, err := io.ReadAll(resp.Snapshot)
	require.NoError(t, err)
	data, sum := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	want := sha256.Sum256(data)
	require.Equal(t, want[:], sum)
	path := filepath.Join(t.TempDir(), "state.db")
	require.NoError(t, os.WriteFile(path, data, 0o600))
	info, err := rescue.Inspect(path)
	require.NoError(t, err)
	require.Equal(t, put.Header.Revision, info.Revision)
	require.NotZero(t, binary.LittleEndian.Uint32(data[16:]), "bbolt's magic number")
}

// TestStopEndsSnapshots checks that a client that stopped reading a snapshot does not prevent the
// store from closing.
func TestStopEndsSnapshots(t *testing.T) {
	d, stop := serve(t, t.TempDir())
	client := etcdClient(t, d)
	defer client.Close()
	fill(t, client)
	conn, err := grpc.NewClient(d.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	stream, err := snapshot.FromConnection(conn)(t.Context())
	require.NoError(t, err)
	require.Greater(t, stream.Size, int64(16<<20))
	stop()
	_, err = io.Copy(io.Discard, stream)
	require.ErrorContains(t, err, "read datastore: ")
}

// TestWritersGoOnUnderASnapshot checks that a stalled reader of a snapshot does not block writers,
// even when they write more than fits into memory.
func TestWritersGoOnUnderASnapshot(t *testing.T) {
	d, stop := serve(t, t.TempDir())
	defer stop()
	client := etcdClient(t, d)
	defer client.Close()
	fill(t, client)
	before, err := client.Get(t.Context(), "/fill/0")
	require.NoError(t, err)
	stream, err := d.Snapshot(t.Context())
	require.NoError(t, err)
	fill(t, client)

	path := filepath.Join(t.TempDir(), "state.db")
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = io.CopyN(f, stream, stream.Size)
	require.NoError(t, err)
	_, err = stream.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, f.Close())
	require.NoError(t, rescue.Adopt(path, 0))
	old, err := bolt.Open(path, bolt.Options{})
	require.NoError(t, err)
	list, err := old.Range(t.Context(), bolt.Query{Key: "/fill/0"})
	require.NoError(t, err)
	require.Equal(t, before.Kvs[0].Value, list.KVs[0].Value)
	require.NoError(t, old.Check())
	require.NoError(t, old.Close())
}

func TestInspection(t *testing.T) {
	dir := t.TempDir()
	d, stop := serve(t, dir)
	defer stop()
	client := etcdClient(t, d)
	defer client.Close()
	_, err := client.Put(t.Context(), "/a", "1")
	require.NoError(t, err)
	status, err := datastore.FetchStatus(t.Context(), client.ActiveConnection())
	require.NoError(t, err)
	require.Equal(t, "bolt", status.Engine)
	require.Equal(t, config(dir).Path, status.Path)
	require.EqualValues(t, 2, status.Revision)
	require.Positive(t, status.FileBytes)
	found, err := datastore.Check(t.Context(), client.ActiveConnection())
	require.NoError(t, err)
	require.Empty(t, found)
}

// TestInspectionOfAnotherDatabase checks the answers of the inspection service for a store of
// another engine.
func TestInspectionOfAnotherDatabase(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	srv := grpc.NewServer()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	defer func() { srv.Stop(); require.NoError(t, <-served) }()
	conn, err := grpc.NewClient("unix://"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	_, err = datastore.FetchStatus(t.Context(), conn)
	require.ErrorIs(t, err, datastore.ErrNotOurs)
	_, err = datastore.Check(t.Context(), conn)
	require.ErrorIs(t, err, datastore.ErrNotOurs)
	_, err = snapshot.FromConnection(conn)(t.Context())
	require.ErrorIs(t, err, snapshot.ErrUnserved)
}
