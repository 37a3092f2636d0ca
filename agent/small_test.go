package agent

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

func TestFootprintIsSharedAndKeptOnce(t *testing.T) {
	config := testConfig("/p")
	config.DataDir = t.TempDir()
	there, missing := t.TempDir(), filepath.Join(t.TempDir(), "missing")
	var parts sync.WaitGroup
	for i := range 8 {
		parts.Go(func() {
			require.NoError(t, recordFootprint(config, ProxyNFTables, there, missing, missing+strconv.Itoa(i)))
		})
	}
	parts.Wait()
	require.NoError(t, recordBridge(config))
	f, err := readFootprint(config)
	require.NoError(t, err)
	require.Len(t, f.Created, 9)
	require.Contains(t, f.Created, missing)
	require.NotContains(t, f.Created, there)
	require.Equal(t, []string{ProxyNFTables}, f.Rules)
	require.True(t, f.Bridge)
}

// TestNoRulesAreNotThere checks that the rules that let pods through a firewall do not count as
// rules with which pods reach the outside.
func TestNoRulesAreNotThere(t *testing.T) {
	config := testConfig("/p")
	config.DataDir = t.TempDir()
	for _, kind := range []string{"", rulesForward} {
		require.NoError(t, recordFootprint(config, kind))
		require.ErrorContains(t, checkOwnRules(t.Context(), config), "names no packet rules of the pod network", kind)
	}
}

func TestKubeletDirOwner(t *testing.T) {
	config := testConfig("/p")
	config.DataDir, config.KubeletDir = t.TempDir(), filepath.Join(t.TempDir(), "kubelet")
	require.NoError(t, kubeletDirOwner(config), "missing")
	require.NoError(t, claimKubeletDir(config))
	require.NoError(t, kubeletDirOwner(config), "ours")
	other := config
	other.DataDir = t.TempDir()
	require.ErrorContains(t, kubeletDirOwner(other), "belongs to the mote with data directory "+config.DataDir)
	config.KubeletDir = t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(config.KubeletDir, "cpu_manager_state"), nil, 0o600))
	require.ErrorContains(t, kubeletDirOwner(config), "another kubelet (it holds cpu_manager_state)")
}

func TestKubeletDirHalfClaimed(t *testing.T) {
	config := testConfig("/p")
	config.DataDir, config.KubeletDir = t.TempDir(), filepath.Join(t.TempDir(), "kubelet")
	killed := func() {
		require.NoError(t, os.MkdirAll(config.KubeletDir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(config.KubeletDir, "."+ownerFile+".123"), nil, 0o600))
	}
	killed()
	require.NoError(t, claimKubeletDir(config), "the next start goes on")

	require.NoError(t, os.RemoveAll(config.KubeletDir))
	killed()
	require.NoError(t, removeKubeletDir(config, footprint{}))
	require.DirExists(t, config.KubeletDir, "not ours")
	require.NoError(t, removeKubeletDir(config, footprint{Created: []string{config.KubeletDir}}))
	require.NoDirExists(t, config.KubeletDir)
}

func TestDecompress(t *testing.T) {
	archive := layerOf(t, "file", "an archive")
	var gzipped, zstandard bytes.Buffer
	gzipWriter := gzip.NewWriter(&gzipped)
	zstdWriter, err := zstd.NewWriter(&zstandard)
	require.NoError(t, err)
	for _, writer := range []io.WriteCloser{gzipWriter, zstdWriter} {
		_, err := writer.Write(archive)
		require.NoError(t, err)
		require.NoError(t, writer.Close())
	}
	for name, from := range map[string]io.Reader{"plain": bytes.NewReader(archive), "gzip": &gzipped, "zstd": &zstandard} {
		reader, err := decompress(from)
		require.NoError(t, err, name)
		require.Equal(t, name != "plain", reader.compressed, name)
		content, err := io.ReadAll(reader)
		require.NoError(t, err, name)
		require.Equal(t, archive, content, name)
		require.NoError(t, reader.Close(), name)
	}
}

func TestImageNames(t *testing.T) {
	require.Equal(t, "docker.io/library/busybox:latest", fullName("busybox"))
	require.Equal(t, "localhost/a/b:1", fullName("localhost/a/b:1"))
	require.Equal(t, "NOT A NAME", fullName("NOT A NAME"))
	require.Equal(t, PauseImage, fullName(PauseImage), "CRI would look for another name")
	for path, want := range map[string]bool{
		"/i/a.tar": false, "/i/a": false, "/i/.a.tar": true, "/i/a.tar.part": true, "/i/a.tmp": true, "/i/a.tar~": true,
	} {
		require.Equal(t, want, unfinished(path), path)
	}
}

func TestRulesWritten(t *testing.T) {
	require.False(t, rulesWritten([]byte(`{"lastUpdated":"2026-01-01T00:00:00Z","healthy":true}`)))
	require.False(t, rulesWritten([]byte(`{"healthy":true,"status":{}}`)))
	require.True(t, rulesWritten([]byte(`{"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-01T00:00:00Z"}}}`)))
}

func TestPauseArchiveIsReproducible(t *testing.T) {
	config := testConfig(t.TempDir())
	require.NoError(t, os.WriteFile(filepath.Join(config.PayloadDir, "pause"), []byte("program"), 0o755))
	first, digest, err := pauseArchive(config)
	require.NoError(t, err)
	second, again, err := pauseArchive(config)
	require.NoError(t, err)
	require.Equal(t, first, second)
	require.Equal(t, digest, again)
}

func TestGatewayAndMAC(t *testing.T) {
	config := testConfig("/p")
	require.Equal(t, "10.42.0.1/24", config.gateway().String())
	mac := bridgeMAC(config)
	require.Equal(t, mac, bridgeMAC(config))
	require.EqualValues(t, 2, mac[0], "locally administered, unicast")
}
