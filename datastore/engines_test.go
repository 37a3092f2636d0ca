package datastore_test

import (
	"flag"
	"fmt"
	"hash/fnv"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/storetest"
	"github.com/mote-k8s/mote/test/servers"
)

var (
	engines     = flag.Bool("engines", false, "run the suite on PostgreSQL, MariaDB and NATS too, and look for etcd with TLS; needs root and Debian's packages")
	natsProgram = flag.String("nats", "", "nats-server to use with -engines instead of Debian's")
)

// beyondKine returns the tests that no engine of kine passes. README.md, "Engines", explains each.
func beyondKine() map[string]string {
	return map[string]string{
		"Status":            "kine is given out as etcd 3.5.12, of which no progress is asked",
		"WatchProgress":     "kine is given out as etcd 3.5.12, of which no progress is asked",
		"Versions":          "kine does not count a key's versions",
		"WithoutGuard":      "kine deletes only with a guard, and does not count versions",
		"CountAll":          "kine has no ranges without an end",
		"Compaction":        "kine compacts by itself, and keeps the last 1000 revisions",
		"WatchAtCompaction": "kine compacts by itself, and keeps the last 1000 revisions",
		"ReopenCompacted":   "kine compacts by itself, and keeps the last 1000 revisions",
		"Linearizable":      "kine may tell reads and refused requests what a key was a moment before; LinearizableChanges passes",
		"LeaseRevoked":      "kine's leases cannot be renewed, revoked or looked at",
		"LeaseReopen":       "kine's leases cannot be renewed, revoked or looked at",
	}
}

// beyondNATS returns the tests of beyondKine and those that NATS does not pass either.
func beyondNATS() map[string]string {
	out := beyondKine()
	maps.Copy(out, map[string]string{
		"Delete":              "a deletion takes two revisions",
		"ListAtRevision":      "a list at a revision has this revision in its header, not the current one",
		"Count":               "a list of keys has values too",
		"WatchLongHistory":    "of each key the last 10 versions are kept, which the endpoint's revHistory= changes",
		"CompactionKey":       "a read may miss the write before it",
		"LinearizableChanges": "a deletion of what another client has just removed is answered as done, whatever its guard",
	})
	return out
}

// openOn returns a storetest.Open for stores at the endpoint that belongs to dir.
func openOn(endpoint func(dir string) string) storetest.Open {
	return func(t testing.TB, dir string) (string, func()) {
		cfg := config(dir)
		cfg.Endpoint = endpoint(dir)
		d, stop := serveConfig(t, cfg)
		return d.Endpoint(), stop
	}
}

// nameOf returns a database name for dir.
func nameOf(dir string) string {
	h := fnv.New64()
	h.Write([]byte(dir))
	return fmt.Sprintf("t%x", h.Sum64())
}

func TestSuiteOnSQLite(t *testing.T) {
	storetest.Run(t, openOn(func(string) string { return "sqlite" }), beyondKine())
}

func needEngines(t *testing.T) servers.Place {
	t.Helper()
	if !*engines {
		t.Skip("needs -engines")
	}
	return servers.Place{Dir: t.TempDir()}
}

func TestSuiteOnPostgres(t *testing.T) {
	_, endpoint := servers.Postgres(t, needEngines(t))
	t.Log(servers.Versions())
	storetest.Run(t, openOn(func(dir string) string { return endpoint + nameOf(dir) }), beyondKine())
}

func TestSuiteOnMySQL(t *testing.T) {
	_, endpoint := servers.MySQL(t, needEngines(t))
	storetest.Run(t, openOn(func(dir string) string { return endpoint + nameOf(dir) }), beyondKine())
}

func TestSuiteOnNATS(t *testing.T) {
	_, endpoint := servers.NATS(t, needEngines(t), *natsProgram)
	storetest.Run(t, openOn(func(dir string) string { return endpoint + "?bucket=" + nameOf(dir) }), beyondNATS())
}

// TestRemoteEtcd checks that a client with the certificates is accepted, and that every other
// client gets an error that gives the reason.
func TestRemoteEtcd(t *testing.T) {
	_, endpoint, certs := servers.Etcd(t, needEngines(t), "")
	cfg := config(t.TempDir())
	cfg.Endpoint, cfg.CAFile, cfg.CertFile, cfg.KeyFile = endpoint, certs.CA, certs.Cert, certs.Key
	d, stop := serveConfig(t, cfg)
	require.Equal(t, endpoint, d.Endpoint())
	require.Equal(t, "etcd at "+strings.TrimPrefix(endpoint, "https://"), d.String())
	require.NoFileExists(t, cfg.Socket)
	stop()
}

// TestRefused checks that a server that refuses mote ends the start at once. The error quotes the
// server without the password.
func TestRefused(t *testing.T) {
	place := needEngines(t)
	_, postgres := servers.Postgres(t, place)
	_, mysql := servers.MySQL(t, place)
	_, nats := servers.NATS(t, place, *natsProgram)
	for endpoint, want := range map[string]string{
		strings.Replace(postgres, "se%40cret", "wrong", 1):   "password authentication failed for user \"mote\"",
		strings.Replace(mysql, servers.Password, "wrong", 1): "Access denied for user 'mote'@'127.0.0.1'",
		strings.Replace(nats, "secret", "wrong", 1):          "Authorization Violation",
	} {
		cfg := config(t.TempDir())
		cfg.Endpoint = endpoint
		d, err := datastore.New(cfg)
		require.NoError(t, err)
		err = d.Run(t.Context())
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "wrong")
	}
}
