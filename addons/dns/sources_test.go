package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSourcesWrite(t *testing.T) {
	dir := t.TempDir()
	write := func(corefile string, custom map[string]string) (string, error) {
		return sources{corefile: corefile, custom: custom}.write(dir)
	}
	text, err := write(Config{Domain: "cluster.local", Address: netip.MustParseAddr("10.42.0.1")}.defaultCorefile(),
		map[string]string{"a.server": "a.test:53 {\n}\n", "b.override": "loop\n"})
	require.NoError(t, err)
	require.Contains(t, text, "mote_unreachable .")
	for file, want := range map[string]string{"a.server": "a.test:10053 { mote_listen\n}\n", "b.override": "mote_loop\n", "none.server": ""} {
		got, err := os.ReadFile(filepath.Join(dir, customDir, file))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}

	// These are files that plugins read.
	text, err = sources{
		corefile: ".:53 {\n file a.db a.test\n hosts /etc/coredns/custom/names\n}\n", files: map[string]string{"a.db": "zone"},
		custom: map[string]string{"names": "192.0.2.1 a.test"},
	}.write(dir)
	require.NoError(t, err)
	require.Equal(t, ".:10053 { mote_listen\nfile "+dir+"/a.db a.test\nhosts "+dir+"/custom/names\n}\n", text)
	zone, err := os.ReadFile(filepath.Join(dir, "a.db"))
	require.NoError(t, err)
	require.Equal(t, "zone", string(zone))
	require.NoFileExists(t, filepath.Join(dir, customDir, "a.server"))

	_, err = write(".:53 {\n}\n", map[string]string{"a.server": "a.test:53\n"})
	require.EqualError(t, err, "custom/a.server:1 - a server block needs its directives in braces: a.test:53 {")
	for _, silent := range []string{"", "(snippet) {\n}\n", ".:53 {\n bind 127.0.0.1\n}\n"} {
		_, err = write(silent, nil)
		require.ErrorContains(t, err, "no server block answers on the cluster's DNS address")
	}
}
