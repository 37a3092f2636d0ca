package datastore_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/test/servers"
)

// migration is a chain of stores, each migrated from the one before.
type migration struct {
	*testing.T
	source *clientv3.Client
	want   map[string]string
	last   int64 // the source's revision
}

func clientOf(t *testing.T, d *datastore.Datastore) *clientv3.Client {
	t.Helper()
	client, err := d.Client()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

// beginMigration fills the first store with more than one page of keys, with history and with a
// lease.
func beginMigration(t *testing.T) *migration {
	d, stop := serve(t, t.TempDir())
	t.Cleanup(stop)
	m := &migration{T: t, source: clientOf(t, d), want: map[string]string{"/registry/health": "{}"}}
	for i := range 250 {
		m.want[fmt.Sprintf("/registry/pods/default/%03d", i)] = fmt.Sprintf("value %d\x00\xff", i)
	}
	lease, err := m.source.Grant(t.Context(), 1000)
	require.NoError(t, err)
	for key, value := range m.want {
		for _, v := range []string{"before", value} {
			_, err := m.source.Put(t.Context(), key, v, clientv3.WithLease(lease.ID))
			require.NoError(t, err)
		}
	}
	_, err = m.source.Put(t.Context(), "compact_rev_key", "1")
	require.NoError(t, err)
	return m
}

// to migrates the last store to a new one, which becomes the last. It returns a function that stops
// the new store.
func (m *migration) to(cfg datastore.Config) (stop func()) {
	m.Helper()
	revision, keys, err := datastore.Survey(m.Context(), m.source.ActiveConnection())
	require.NoError(m, err)
	require.EqualValues(m, len(m.want), keys)
	cfg.Above = revision
	d, stop := serveConfig(m.T, cfg)
	stop = sync.OnceFunc(stop)
	m.Cleanup(stop)
	target := clientOf(m.T, d)
	var last string
	copied, err := datastore.Migration{
		Source: m.source.ActiveConnection(), Target: target.ActiveConnection(), Revision: revision,
		Progress: func(step string, done, total int64) { last = fmt.Sprintf("%s %d/%d", step, done, total) },
	}.Run(m.Context())
	require.NoError(m, err)
	require.Equal(m, keys, copied)
	require.Equal(m, fmt.Sprintf("comparing %d/%d", keys, keys), last)

	m.holds(target, revision)
	marker, err := target.Get(m.Context(), "mote/migration")
	require.NoError(m, err)
	require.Empty(m, marker.Kvs)

	again := datastore.Migration{Source: m.source.ActiveConnection(), Target: target.ActiveConnection(), Revision: revision}
	_, err = again.Run(m.Context())
	require.ErrorIs(m, err, datastore.ErrNotEmpty)
	m.source, m.last = target, revision
	return stop
}

// holds checks that a store has all keys, with their leases, and that its revision is above the
// given one.
func (m *migration) holds(client *clientv3.Client, revision int64) {
	m.Helper()
	all, err := client.Get(m.Context(), "/", clientv3.WithRange("0"))
	require.NoError(m, err)
	got := map[string]string{}
	for _, kv := range all.Kvs {
		got[string(kv.Key)] = string(kv.Value)
		require.Greater(m, kv.ModRevision, revision, "%s is older than what clients have seen", kv.Key)
		require.NotZero(m, kv.Lease, kv.Key)
	}
	require.Equal(m, m.want, got)
}

// oldRevisionIsGone checks that a client with a revision of the previous store must list again.
func (m *migration) oldRevisionIsGone() {
	m.Helper()
	ctx, cancel := context.WithCancel(m.Context())
	defer cancel()
	refused := <-m.source.Watch(ctx, "/registry/", clientv3.WithPrefix(), clientv3.WithRev(m.last-100))
	require.Error(m, refused.Err())
	require.NotZero(m, refused.CompactRevision)
}

func at(t *testing.T, endpoint string) datastore.Config {
	cfg := config(t.TempDir())
	cfg.Endpoint = endpoint
	return cfg
}

func TestMigrate(t *testing.T) {
	m := beginMigration(t)
	for _, endpoint := range []string{"sqlite", "bolt", "sqlite://" + filepath.Join(t.TempDir(), "a", "b.db")} {
		m.to(at(t, endpoint))
		m.oldRevisionIsGone()
	}
}

// TestMigrateWhileLeasesEnd checks keys whose lease ends before, during or after their copy: the
// migration neither misses them nor fails.
func TestMigrateWhileLeasesEnd(t *testing.T) {
	m := beginMigration(t)
	ctx := t.Context()
	leases := map[string]clientv3.LeaseID{}
	for _, when := range []string{"before", "during", "after"} {
		lease, err := m.source.Grant(ctx, 2000)
		require.NoError(t, err)
		leases[when] = lease.ID
		_, err = m.source.Put(ctx, "/registry/events/"+when, when, clientv3.WithLease(lease.ID))
		require.NoError(t, err)
	}
	revision, keys, err := datastore.Survey(ctx, m.source.ActiveConnection())
	require.NoError(t, err)
	_, err = m.source.Revoke(ctx, leases["before"])
	require.NoError(t, err)

	cfg := at(t, "bolt")
	cfg.Above = revision
	d, stop := serveConfig(t, cfg)
	defer stop()
	target := clientOf(t, d)
	// In the order of the keys: one ends after the copy, one during it; the last is that of the
	// pods.
	var granted []clientv3.LeaseID
	conn, err := grpc.NewClient(d.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, opts...)
			if made, ok := reply.(*etcdserverpb.LeaseGrantResponse); ok && err == nil {
				granted = append(granted, clientv3.LeaseID(made.ID))
				if len(granted) == 2 {
					_, err = target.Revoke(ctx, granted[1])
				}
			}
			return err
		}))
	require.NoError(t, err)
	defer conn.Close()
	copied, err := datastore.Migration{
		Source: m.source.ActiveConnection(), Target: conn, Revision: revision,
		Progress: func(step string, done, total int64) {
			if step == "copying" && done == total {
				_, err := target.Revoke(ctx, granted[0])
				require.NoError(t, err)
			}
		},
	}.Run(ctx)
	require.NoError(t, err)
	require.Equal(t, keys-3, copied)
	left, err := target.Get(ctx, "/registry/events/", clientv3.WithPrefix())
	require.NoError(t, err)
	require.Empty(t, left.Kvs)
}

func TestMigrateToServers(t *testing.T) {
	place := needEngines(t)
	_, postgres := servers.Postgres(t, place)
	_, mysql := servers.MySQL(t, place)
	_, etcd, certs := servers.Etcd(t, place, "")
	m := beginMigration(t)
	for _, endpoint := range []string{postgres, mysql + "of_mote", etcd} {
		cfg := at(t, endpoint)
		if endpoint == etcd {
			cfg.CAFile, cfg.CertFile, cfg.KeyFile = certs.CA, certs.Cert, certs.Key
		}
		m.to(cfg)
		m.oldRevisionIsGone()
	}
}

// TestMigrateAgain checks that no server starts on the target of an interrupted migration, and that
// the next migration starts again from the beginning.
func TestMigrateAgain(t *testing.T) {
	m := beginMigration(t)
	for _, endpoint := range []string{"bolt", "sqlite"} {
		cfg := at(t, endpoint)
		revision, _, err := datastore.Survey(t.Context(), m.source.ActiveConnection())
		require.NoError(t, err)
		cfg.Above = revision
		d, stop := serveConfig(t, cfg)
		target := clientOf(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		_, err = datastore.Migration{
			Source: m.source.ActiveConnection(), Target: target.ActiveConnection(), Revision: revision,
			Progress: func(string, int64, int64) { cancel() }, // after the first page
		}.Run(ctx)
		require.Error(t, err)
		stop()

		cfg.Above = 0
		require.ErrorContains(t, run(t, cfg), "holds an unfinished migration")
		m.to(cfg)()
		d, stop = serveConfig(t, cfg) // as a server does: it checks that the store is complete
		t.Cleanup(stop)
		m.source = clientOf(t, d)
		m.holds(m.source, m.last)
	}
}
