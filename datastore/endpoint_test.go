package datastore_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore"
)

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"":                             "bolt at /d/state.db",
		"bolt":                         "bolt at /d/state.db",
		"sqlite":                       "sqlite at /d/kine.db",
		"sqlite:///a/b.db":             "sqlite at /a/b.db",
		"postgres://u:secret@h:1/db":   "postgres at h:1, database db",
		"postgresql://u:secret@h/":     "postgres at h:5432, database kubernetes",
		"mysql://u:secret@tcp(h:1)/":   "mysql at h:1, database kubernetes",
		"nats://u:secret@h:1,nats://i": "nats at h:1,i",
		"https://h:1,https://i:2":      "etcd at h:1,i:2",
	} {
		d, err := datastore.New(datastore.Config{Endpoint: endpoint, Path: "/d/state.db", Socket: "/r/s"})
		require.NoError(t, err, endpoint)
		require.Equal(t, want, d.String())
	}
}

// TestBadEndpoints checks that each error describes the mistake and does not contain the password.
func TestBadEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"bolt:///a":                     "bolt takes no path",
		"boltdb":                        "not one of bolt, sqlite, postgres://",
		"oracle://u:secret@h":           "not one of bolt, sqlite, postgres://",
		"sqlite://a.db":                 "not an absolute path",
		"sqlite:///a?secret=1":          "options are not taken",
		"postgres://u:secret%@h/":       "percent-encoded",
		"postgres://u:secret@h:x/":      "percent-encoded",
		"mysql://u:secret@h:3306/db":    "mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE",
		"mysql://u:secret@tcp(h:1":      "mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE",
		"nats://u:secret@h,secret":      "nats://USER:PASSWORD@HOST:4222",
		"https://u:secret@h:1":          "give datastore-certfile and datastore-keyfile, no password",
		"https://h":                     "etcd at h is without port",
		"https://h:1,http://i:2":        "all http or all https",
		"https://h:1/path":              "https://HOST:2379",
		"https://h:1,postgres://secret": "https://HOST:2379",
	} {
		_, err := datastore.New(datastore.Config{Endpoint: endpoint, Path: "/d/state.db", Socket: "/r/s"})
		require.ErrorContains(t, err, want, endpoint)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestBadTLSFiles(t *testing.T) {
	dir := t.TempDir()
	rubbish := filepath.Join(dir, "rubbish")
	require.NoError(t, os.WriteFile(rubbish, []byte("rubbish"), 0o600))
	for _, tt := range []struct {
		endpoint, ca, cert, key, want string
	}{
		{"bolt", rubbish, "", "", "bolt has no server"},
		{"sqlite", rubbish, "", "", "sqlite has no server"},
		{"https://h:1", filepath.Join(dir, "none"), "", "", "read datastore-cafile: open"},
		{"https://h:1", rubbish, "", "", "holds no certificate"},
		{"https://h:1", "", rubbish, rubbish, "datastore-certfile and datastore-keyfile"},
		{"https://h:1", "", rubbish, "", "must be given together"},
		{"http://h:1", rubbish, "", "", "make it https"},
	} {
		_, err := datastore.New(datastore.Config{
			Endpoint: tt.endpoint, CAFile: tt.ca, CertFile: tt.cert, KeyFile: tt.key, Path: "/d/state.db", Socket: "/r/s",
		})
		require.ErrorContains(t, err, tt.want)
	}
}

// TestUnreachable checks that the datastore waits for a server that does not answer, and that Ready
// reports which server it waits for.
func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close()) // nothing listens there now
	for _, endpoint := range []string{
		"postgres://u:secret@" + address + "/db", "mysql://u:secret@tcp(" + address + ")/db", "nats://u:secret@" + address, "http://" + address,
	} {
		d, err := datastore.New(datastore.Config{Endpoint: endpoint, Path: "/d/state.db", Socket: "/r/s"})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		var missing string
		require.Eventually(t, func() bool {
			asked, done := context.WithTimeout(ctx, time.Millisecond)
			defer done()
			missing = d.Ready(asked).Error()
			return strings.Contains(missing, "does not answer yet: ")
		}, 10*time.Second, time.Millisecond)
		require.Contains(t, missing, address)
		require.NotContains(t, missing, "secret")
		cancel()
		require.NoError(t, <-ended)
	}
}
