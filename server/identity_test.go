package server

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLostKeysAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		remove  []string // below <data-dir>/server
		missing []string // nil when the start goes on
		sealed  bool
	}{
		"tls":            {[]string{"tls"}, []string{"tls/server-ca.key", "tls/client-ca.key", "tls/service-account.key"}, false},
		"everything":     {[]string{"."}, []string{"tls/server-ca.key", "tls/client-ca.key", "tls/service-account.key", "encryption.yaml"}, true},
		"encryption":     {[]string{"encryption.yaml"}, []string{"encryption.yaml"}, true},
		"one on purpose": {[]string{"tls/service-account.key"}, nil, false},
		"leaves":         {[]string{"tls/apiserver.crt", "tls/admin.key"}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			c := issueAll(t, cfg, y2027)
			for _, one := range test.remove {
				require.NoError(t, os.RemoveAll(filepath.Join(c.data.Server(), one)))
			}
			before := contents(t, cfg.DataDir)
			err := c.checkKeys()
			require.Equal(t, before, contents(t, cfg.DataDir), "a check changes nothing")
			if test.missing == nil {
				require.NoError(t, err)
				return
			}
			var lost *LostKeysError
			require.ErrorAs(t, err, &lost)
			require.Equal(t, test.missing, lost.Missing)
			require.Equal(t, test.sealed, lost.Sealed)
		})
	}
}

// TestPrepareRefusesLostKeys: with a datastore that has state nothing is made anew; without, all is.
func TestPrepareRefusesLostKeys(t *testing.T) {
	cfg := testConfig(t)
	cfg.HasState = true
	_, err := Prepare(cfg)
	var lost *LostKeysError
	require.ErrorAs(t, err, &lost)
	require.NoDirExists(t, filepath.Join(cfg.DataDir, "server"))
}

func TestInit(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	certificates := Certificates{DataDir: cfg.DataDir, NodeDir: nodeDir(cfg), AdminKubeconfig: cfg.AdminKubeconfig}
	require.ErrorContains(t, certificates.Init(), "already")
	old, err := os.ReadFile(c.tls("client-ca.crt"))
	require.NoError(t, err)
	encryption, err := os.ReadFile(c.data.EncryptionConfig())
	require.NoError(t, err)

	require.NoError(t, os.RemoveAll(c.tls("")))
	require.NoError(t, certificates.Init())
	require.NoError(t, c.checkKeys())
	made, err := os.ReadFile(c.tls("client-ca.crt"))
	require.NoError(t, err)
	require.NotEqual(t, string(old), string(made))
	kept, err := os.ReadFile(c.data.EncryptionConfig())
	require.NoError(t, err)
	require.Equal(t, string(encryption), string(kept))
	require.NoError(t, issue(c, cfg, y2027), "a start goes on from here")
	verifyAll(t, c, cfg, y2027)

	require.NoError(t, os.RemoveAll(c.data.Server()))
	require.ErrorContains(t, certificates.Init(), "Secrets cannot be read")
	require.NoDirExists(t, c.data.Server())
}

// TestVanishedDirectory: what goes away below a running server is in its status until it is back.
func TestVanishedDirectory(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	r := renewal{&ControlPlane{cfg: cfg, creds: c, now: func() time.Time { return y2027 }, nodes: map[string]node{}}}
	r.try()
	require.Empty(t, r.Trouble())
	away := filepath.Join(t.TempDir(), "tls")
	require.NoError(t, os.Rename(c.tls(""), away))
	r.try()
	require.Len(t, r.Trouble(), 1)
	require.Contains(t, r.Trouble()[0], "is gone")
	require.NotContains(t, r.Trouble()[0], "try again")
	require.NoError(t, os.Rename(away, c.tls("")))
	r.try()
	require.Empty(t, r.Trouble())
	require.NoError(t, c.checkKeys())
}
