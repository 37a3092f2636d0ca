package pki

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLostKeysAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		remove  []string // below <data-dir>/server
		missing []string // nil when the start continues
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
			err := c.CheckKeys()
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

func TestInit(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	certificates := Certificates{DataDir: cfg.DataDir, NodeDir: nodeDir(cfg), AdminKubeconfig: cfg.AdminKubeconfig}
	require.ErrorContains(t, certificates.Init(), "already")
	old, err := os.ReadFile(c.Path("client-ca.crt"))
	require.NoError(t, err)
	encryption, err := os.ReadFile(c.data.EncryptionConfig())
	require.NoError(t, err)

	require.NoError(t, os.RemoveAll(c.Path("")))
	require.NoError(t, certificates.Init())
	require.NoError(t, c.CheckKeys())
	made, err := os.ReadFile(c.Path("client-ca.crt"))
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
