package networkpolicy

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const noted = `{"kind":"cniCacheV1","containerId":"c","ifName":"eth0","networkName":"mote",
	"cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","a"],["K8S_POD_NAME","web"],["K8S_POD_UID","u"]],
	"result":{"cniVersion":"1.0.0","ips":[{"address":"10.42.0.7/24","gateway":"10.42.0.1","interface":2}]}}`

func TestAttachmentsFollowTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	changed := make(chan struct{}, 100)
	a, stop, err := watchAttachments(t.Context(), dir, func() { changed <- struct{}{} })
	require.NoError(t, err)
	defer stop()
	<-changed // the initial scan, which finds nothing
	pods, _ := a.byPod()
	require.Empty(t, pods)

	file := filepath.Join(dir, "mote-c-eth0")
	require.NoError(t, os.WriteFile(file, []byte(noted)[:50], 0o600), "as the library writes: not at once")
	require.NoError(t, os.WriteFile(file, []byte(noted), 0o600))
	<-changed
	pods, taken := a.byPod()
	address := netip.MustParseAddr("10.42.0.7")
	require.Equal(t, map[string][]attachment{"a/web": {{"a", "web", "u", []netip.Addr{address}}}}, pods)
	require.Equal(t, map[netip.Addr]bool{address: true}, taken)

	require.NoError(t, os.Remove(file))
	<-changed
	pods, _ = a.byPod()
	require.Empty(t, pods)
}

func TestAttachmentsOfAFormerLife(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mote-c-eth0"), []byte(noted), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "broken"), []byte("{"), 0o600))
	a, stop, err := watchAttachments(t.Context(), dir, func() {})
	require.NoError(t, err)
	defer stop()
	pods, _ := a.byPod()
	require.Len(t, pods, 1)
}
