package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/keyutil"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/layout"
)

var (
	y1970 = time.Unix(0, 0)
	y2027 = time.Date(2027, time.March, 1, 0, 0, 0, 0, time.UTC)
	y2050 = time.Date(2050, time.March, 1, 0, 0, 0, 0, time.UTC)
)

// setup is the directory of a control plane and the configuration of its certificates.
type setup struct {
	Config
	DataDir string
}

func testConfig(t *testing.T) setup {
	data := filepath.Join(t.TempDir(), "data")
	return setup{DataDir: data, Config: Config{
		URL: "https://127.0.0.1:6443", ClusterName: DefaultClusterName, ClusterDomain: "cluster.local",
		ServiceAddress:   netip.MustParseAddr("10.43.0.1"),
		AdvertiseAddress: netip.MustParseAddr("10.42.0.1"),
		ListenAddress:    netip.IPv4Unspecified(),
		TLSSANs:          []string{"cluster.example", "192.0.2.7"},
		AdminKubeconfig:  filepath.Join(data, "kubeconfig"),
	}}
}

// issueAll creates every file of the control plane and of one node, as Prepare and IssueNode do.
func issueAll(t *testing.T, cfg setup, now time.Time) *Credentials {
	c := New(layout.Data(cfg.DataDir))
	require.NoError(t, issue(c, cfg, now))
	return c
}

func issue(c *Credentials, cfg setup, now time.Time) error {
	if err := c.MakeDirs(); err != nil {
		return err
	}
	if err := c.Load(); err != nil {
		return err
	}
	if _, err := c.Renew(cfg.Config, now); err != nil {
		return err
	}
	if err := EnsureEncryption(c.data.EncryptionConfig()); err != nil {
		return err
	}
	_, err := c.IssueNode(nodeDir(cfg), "node1", []netip.Addr{cfg.AdvertiseAddress}, cfg.URL, now)
	return err
}

func nodeDir(cfg setup) string { return filepath.Join(cfg.DataDir, "agent", "credentials") }

// leaves returns all certificate files except those of authorities, by path without extension.
func leaves(c *Credentials, cfg setup) map[string]*authority {
	node := func(name string) string { return filepath.Join(nodeDir(cfg), name) }
	return map[string]*authority{
		c.Path("apiserver"): c.serverCA, c.Path("localhost"): c.serverCA, c.Path("metrics-server"): c.serverCA, node("kubelet"): c.serverCA,
		c.Path("apiserver-kubelet-client"): c.clientCA, c.Path("admin"): c.clientCA,
		c.Path("controller-manager"): c.clientCA, c.Path("scheduler"): c.clientCA,
		node("kubelet-client"): c.clientCA, node("kube-proxy"): c.clientCA,
		c.Path("front-proxy-client"): c.frontProxyCA,
	}
}

func readCert(t *testing.T, path string) *x509.Certificate {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	cert, err := parseCertificate(data)
	require.NoError(t, err)
	return cert
}

// verifyAll checks each leaf as a peer does at now: chain, dates, key, usage.
func verifyAll(t *testing.T, c *Credentials, cfg setup, now time.Time) {
	for base, ca := range leaves(c, cfg) {
		_, err := tls.LoadX509KeyPair(base+".crt", base+".key")
		require.NoError(t, err, base)
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		cert := readCert(t, base+".crt")
		_, err = cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: cert.ExtKeyUsage})
		require.NoError(t, err, "%s at %s", base, now)
	}
}

func TestCertificatesHoldAtAnyClock(t *testing.T) {
	for _, made := range []time.Time{y1970, y2027, y2050} {
		t.Run(fmt.Sprint(made.Year()), func(t *testing.T) {
			cfg := testConfig(t)
			c := issueAll(t, cfg, made)
			verifyAll(t, c, cfg, made)
			verifyAll(t, c, cfg, y1970) // the clock was lost
			verifyAll(t, c, cfg, made.Add(leafLifetime*2/3))
		})
	}
}

func TestClockThatIsSetLater(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y1970)
	verifyAll(t, c, cfg, y2050) // the clock jumps before any renewal
	issueAll(t, cfg, y2027)
	for base := range leaves(c, cfg) {
		require.Equal(t, y2027.Add(leafLifetime), readCert(t, base+".crt").NotAfter, base)
	}
}

func TestRenewal(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	before := contents(t, cfg.DataDir)

	issueAll(t, cfg, y2027.Add(leafLifetime/2))
	require.Equal(t, before, contents(t, cfg.DataDir), "nothing is written before it has to be")

	for _, later := range []time.Time{y2027.Add(leafLifetime * 3 / 4), y2050} {
		issueAll(t, cfg, later)
		verifyAll(t, c, cfg, later) // c still holds the first authorities
		after := contents(t, cfg.DataDir)
		for path := range leaves(c, cfg) {
			require.NotEqual(t, before[path+".crt"], after[path+".crt"], path)
			require.Equal(t, before[path+".key"], after[path+".key"], path)
		}
		admin, err := clientcmd.LoadFromFile(cfg.AdminKubeconfig)
		require.NoError(t, err)
		require.Equal(t, after[c.Path("admin.crt")], string(admin.AuthInfos["mote"].ClientCertificateData))
	}
}

func TestServingNames(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	hostname, err := os.Hostname()
	require.NoError(t, err)
	names := []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost", "127.0.0.1", "::1", "10.43.0.1", "10.42.0.1", "cluster.example", "192.0.2.7", hostname,
	}
	cert := readCert(t, c.Path("apiserver.crt"))
	for _, name := range names {
		require.NoError(t, cert.VerifyHostname(name))
	}
	require.Error(t, cert.VerifyHostname("other.example"))

	cfg.TLSSANs = []string{"other.example"}
	issueAll(t, cfg, y2027)
	cert = readCert(t, c.Path("apiserver.crt"))
	require.NoError(t, cert.VerifyHostname("other.example"))
	require.Error(t, cert.VerifyHostname("cluster.example"))
	verifyAll(t, c, cfg, y2027)
}

func TestFileModes(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	require.NoError(t, os.Chmod(c.Path("admin.key"), 0o644))
	require.NoError(t, os.Chmod(c.data.EncryptionConfig(), 0o644))
	issueAll(t, cfg, y2027)
	err := filepath.WalkDir(cfg.DataDir, func(path string, entry os.DirEntry, err error) error {
		require.NoError(t, err)
		info, err := entry.Info()
		require.NoError(t, err)
		want := os.FileMode(0o600)
		switch {
		case path == filepath.Join(cfg.DataDir, "agent"): // belongs to the agent
			return nil
		case entry.IsDir():
			want = 0o700
		case filepath.Ext(path) == ".crt":
			want = 0o644
		}
		require.Equal(t, want, info.Mode().Perm(), path)
		return nil
	})
	require.NoError(t, err)
}

// TestCrash stops the work after each write: whichever files exist by then, the next start
// completes the set and keeps the files that it finds.
func TestCrash(t *testing.T) {
	cfg := testConfig(t)
	order := recordWrites(t, cfg)
	whole := contents(t, cfg.DataDir)
	require.Len(t, order, len(whole), "each file is written once")
	for n := range order {
		cut := testConfig(t)
		moved := func(path string) string {
			rel, err := filepath.Rel(cfg.DataDir, path)
			require.NoError(t, err)
			return filepath.Join(cut.DataDir, rel)
		}
		for _, path := range order[:n] {
			require.NoError(t, os.MkdirAll(filepath.Dir(moved(path)), 0o700))
			require.NoError(t, os.WriteFile(moved(path), []byte(whole[path]), 0o600))
		}
		half := durable.Temporary(moved(order[n]))
		require.NoError(t, os.MkdirAll(filepath.Dir(half), 0o700))
		require.NoError(t, os.WriteFile(half, []byte("half"), 0o644))
		c := issueAll(t, cut, y2027)
		verifyAll(t, c, cut, y2027)
		after := contents(t, cut.DataDir)
		require.Len(t, after, len(whole), "and no half-written file is left")
		for _, path := range order[:n] {
			require.Equal(t, whole[path], after[moved(path)], "%s after %d files", path, n)
		}
	}
}

// recordWrites issues everything and returns the paths in the order in which the files were renamed
// to them.
func recordWrites(t *testing.T, cfg setup) []string {
	watcher, err := fsnotify.NewBufferedWatcher(1000)
	require.NoError(t, err)
	defer watcher.Close()
	c := New(layout.Data(cfg.DataDir))
	require.NoError(t, os.MkdirAll(c.Path(""), 0o700))
	require.NoError(t, os.MkdirAll(nodeDir(cfg), 0o700))
	for _, dir := range []string{cfg.DataDir, c.data.Server(), c.Path(""), nodeDir(cfg)} {
		require.NoError(t, watcher.Add(dir))
	}
	require.NoError(t, issue(c, cfg, y2027))
	last := filepath.Join(cfg.DataDir, "last")
	require.NoError(t, os.WriteFile(last, nil, 0o600))
	var order []string
	for {
		select {
		case err := <-watcher.Errors:
			require.NoError(t, err)
		case event := <-watcher.Events:
			switch {
			case event.Name == last:
				require.NoError(t, os.Remove(last))
				return order
			case event.Has(fsnotify.Create) && filepath.Base(event.Name)[0] != '.':
				order = append(order, event.Name)
			}
		}
	}
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

func TestDamage(t *testing.T) {
	t.Run("a leaf's certificate or key is made again", func(t *testing.T) {
		for _, ext := range []string{".crt", ".key"} {
			cfg := testConfig(t)
			c := issueAll(t, cfg, y2027)
			require.NoError(t, os.WriteFile(c.Path("scheduler"+ext), []byte("garbage"), 0o600))
			verifyAll(t, issueAll(t, cfg, y2027), cfg, y2027)
		}
	})
	t.Run("an authority's certificate is made again from its key", func(t *testing.T) {
		cfg := testConfig(t)
		c := issueAll(t, cfg, y2027)
		require.NoError(t, os.Remove(c.Path("client-ca.crt")))
		again := issueAll(t, cfg, y2027)
		require.True(t, samePublic(c.clientCA.key.Public(), again.clientCA.key.Public()))
		verifyAll(t, again, cfg, y2027)
		verifyAll(t, c, cfg, y2027) // clients with the old certificate trust the same leaves
	})
	t.Run("an authority's lost key is not replaced", func(t *testing.T) {
		for _, damage := range []func(path string) error{os.Remove, func(path string) error { return os.WriteFile(path, nil, 0o600) }} {
			cfg := testConfig(t)
			c := issueAll(t, cfg, y2027)
			require.NoError(t, damage(c.Path("server-ca.key")))
			err := issue(&Credentials{data: c.data}, cfg, y2027)
			require.ErrorContains(t, err, "server-ca.key")
			require.ErrorContains(t, err, "restore it from a backup")
		}
	})
	t.Run("mixed authorities are noticed", func(t *testing.T) {
		cfg := testConfig(t)
		c := issueAll(t, cfg, y2027)
		key, err := os.ReadFile(c.Path("client-ca.key"))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(c.Path("server-ca.key"), key, 0o600))
		require.ErrorContains(t, issue(&Credentials{data: c.data}, cfg, y2027), "do not belong together")
	})
}

func TestEncryptionKeyIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "encryption.yaml")
	require.NoError(t, EnsureEncryption(path))
	first, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Contains(first, []byte("secretbox")))
	require.NoError(t, EnsureEncryption(path))
	second, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(first), string(second))
}

func TestServiceAccountKeyIsOneThatUpstreamReads(t *testing.T) {
	cfg := testConfig(t)
	c := issueAll(t, cfg, y2027)
	key, err := readKey(c.Path("service-account.key"))
	require.NoError(t, err)
	public, err := keyutil.PublicKeysFromFile(c.Path("service-account.key"))
	require.NoError(t, err)
	require.Len(t, public, 1)
	require.True(t, samePublic(key.Public(), public[0]))
}
