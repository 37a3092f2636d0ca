package server

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/server/pki"
)

var y2027 = time.Date(2027, time.March, 1, 0, 0, 0, 0, time.UTC)

// year is the lifetime of a leaf.
const year = 365 * 24 * time.Hour

func testConfig(t *testing.T) Config {
	dir := t.TempDir()
	return Config{
		DataDir:           filepath.Join(dir, "data"),
		AdminKubeconfig:   filepath.Join(dir, "data", "kubeconfig"),
		DatastoreEndpoint: "unix:///run/mote/datastore.sock",
		AdvertiseAddress:  netip.MustParseAddr("10.42.0.1"),
		TLSSANs:           []string{"cluster.example", "192.0.2.7"},
	}.withDefaults()
}

// issue creates every file of the control plane and of one node, as Prepare and IssueNode do.
func issue(t *testing.T, cfg Config, now time.Time) *pki.Credentials {
	c := pki.New(layout.Data(cfg.DataDir))
	require.NoError(t, c.MakeDirs())
	require.NoError(t, c.Load())
	_, err := c.Renew(cfg.pki(), now)
	require.NoError(t, err)
	require.NoError(t, pki.EnsureEncryption(layout.Data(cfg.DataDir).EncryptionConfig()))
	_, err = c.IssueNode(nodeDir(cfg), "node1", []netip.Addr{cfg.AdvertiseAddress}, cfg.url(), now)
	require.NoError(t, err)
	return c
}

func nodeDir(cfg Config) string { return filepath.Join(cfg.DataDir, "agent", "credentials") }

// leaves returns the paths of the certificates in directories, except those of authorities.
func leaves(t *testing.T, dirs ...string) []string {
	var paths []string
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, "*.crt"))
		require.NoError(t, err)
		paths = append(paths, found...)
	}
	paths = slices.DeleteFunc(paths, func(path string) bool { return strings.Contains(filepath.Base(path), "-ca") })
	require.Greater(t, len(paths), 10)
	return paths
}

func contents(t *testing.T, dir string) map[string]string {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = string(data)
		return err
	})
	require.NoError(t, err)
	return files
}

func endOf(t *testing.T, path string) time.Time {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return pki.CertificatesIn(data)[0].NotAfter
}

// TestPrepareRefusesLostKeys checks that a datastore with state keeps Prepare from creating lost
// keys anew. Without state Prepare creates all of them.
func TestPrepareRefusesLostKeys(t *testing.T) {
	cfg := testConfig(t)
	cfg.HasState = true
	_, err := Prepare(cfg)
	var lost *pki.LostKeysError
	require.ErrorAs(t, err, &lost)
	require.NoDirExists(t, filepath.Join(cfg.DataDir, "server"))
}

// TestCopyThatCannotBeWritten checks that a copy of the admin kubeconfig that cannot be written
// stops no renewal, least of all that of a node's certificates.
func TestCopyThatCannotBeWritten(t *testing.T) {
	cfg := testConfig(t)
	c := issue(t, cfg, y2027)
	cfg.KubeconfigCopy = filepath.Join(t.TempDir(), "gone", "copy")
	later := y2027.Add(year * 3 / 4)
	plane := &ControlPlane{cfg: cfg, creds: c, now: func() time.Time { return later }, nodes: map[string]node{
		nodeDir(cfg): {"node1", []netip.Addr{cfg.AdvertiseAddress}},
	}}
	require.ErrorContains(t, plane.renew(), "--write-kubeconfig")
	for _, path := range leaves(t, c.Path(""), nodeDir(cfg)) {
		require.Equal(t, later.Add(year), endOf(t, path), path)
	}
	require.NoError(t, os.Mkdir(filepath.Dir(cfg.KubeconfigCopy), 0o700))
	require.NoError(t, plane.renew())
	kubeconfig, err := os.ReadFile(cfg.AdminKubeconfig)
	require.NoError(t, err)
	copied, err := os.ReadFile(cfg.KubeconfigCopy)
	require.NoError(t, err)
	require.Equal(t, string(kubeconfig), string(copied))
}

// TestVanishedDirectory removes a directory below a running server: the status reports it until it
// is back.
func TestVanishedDirectory(t *testing.T) {
	cfg := testConfig(t)
	c := issue(t, cfg, y2027)
	r := renewal{&ControlPlane{cfg: cfg, creds: c, now: func() time.Time { return y2027 }, nodes: map[string]node{}}}
	r.try()
	require.Empty(t, r.Trouble())
	away := filepath.Join(t.TempDir(), "tls")
	require.NoError(t, os.Rename(c.Path(""), away))
	r.try()
	require.Len(t, r.Trouble(), 1)
	require.Contains(t, r.Trouble()[0], "is gone")
	require.NotContains(t, r.Trouble()[0], "try again")
	require.NoError(t, os.Rename(away, c.Path("")))
	r.try()
	require.Empty(t, r.Trouble())
	require.NoError(t, c.CheckKeys())
}
