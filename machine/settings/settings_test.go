package settings

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

// load loads Settings from flags, environment and files. It writes files below a fresh directory
// whose config.yaml is the configuration; %s in want stands for that directory.
func load(t *testing.T, files, env map[string]string, args ...string) (*Settings, string, error) {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "config.yaml.d"), 0o700))
	files2 := map[string]string{"config.yaml": ""}
	for name, text := range files {
		files2[name] = text
	}
	for name, text := range files2 {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	fs := pflag.NewFlagSet("server", pflag.ContinueOnError)
	l := Register(fs, "server")
	if err := fs.Parse(append([]string{"--config", filepath.Join(dir, "config.yaml"), "--node-name", "n1"}, args...)); err != nil {
		return nil, dir, err
	}
	s, err := l.Load(func(name string) string { return env[name] })
	return s, dir, err
}

func TestDefaults(t *testing.T) {
	s, _, err := load(t, nil, nil)
	require.NoError(t, err)
	noon := time.Date(2026, time.August, 1, 12, 0, 0, 0, time.UTC)
	require.Equal(t, noon, s.SnapshotSchedule.Next(noon.Add(-time.Hour)))
	s.SnapshotSchedule = nil
	require.Equal(t, &Settings{
		DataDir: "/var/lib/mote", RunDir: "/run/mote", KubeletDir: "/var/lib/kubelet", ImageDir: "/var/lib/mote/images", ManifestsDir: "/var/lib/mote/server/manifests",
		IngressHTTPPort: 80, IngressHTTPSPort: 443,
		DatastoreEndpoint:  "bolt",
		DatastoreQuota:     8 << 30,
		DatastoreVolatile:  "leases",
		HTTPSListenAddress: netip.MustParseAddr("0.0.0.0"), HTTPSListenPort: 6443,
		NodeName:    "n1",
		ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		ClusterDNS: netip.MustParseAddr("10.43.0.10"), ClusterDomain: "cluster.local", CNI: "bridge", Proxy: "auto",
		SnapshotRetention: 5, SnapshotDir: "/var/lib/mote/datastore/snapshots",
		Profile: "default", ExposeMetrics: "off", LogLevel: "info", LogFormat: "text",
	}, s)
	require.Equal(t, "10.42.0.0/24", s.PodCIDR().String())
	require.Equal(t, "10.42.0.1", s.BridgeAddress().String())
}

func TestPrecedence(t *testing.T) {
	file := map[string]string{"config.yaml": "https-listen-port: 1001\ntls-san: [file]\n"}
	variable := map[string]string{"MOTE_HTTPS_LISTEN_PORT": "1002", "MOTE_TLS_SAN": "env1 env2"}
	for _, tt := range []struct {
		name  string
		files map[string]string
		env   map[string]string
		args  []string
		port  int
		sans  []string
	}{
		{"default", nil, nil, nil, 6443, nil},
		{"file", file, nil, nil, 1001, []string{"file"}},
		{"environment over file", file, variable, nil, 1002, []string{"env1", "env2"}},
		{
			"flag over environment", file, variable, []string{"--https-listen-port=1003", "--tls-san=a", "--tls-san=b"},
			1003, []string{"a", "b"},
		},
		{"the last flag counts", nil, nil, []string{"--https-listen-port=1", "--https-listen-port=2"}, 2, nil},
		{
			"a later file replaces", map[string]string{
				"config.yaml":          "https-listen-port: 1\ntls-san: [a]\n",
				"config.yaml.d/2.yaml": "https-listen-port: 2\ntls-san: [b]\n",
				"config.yaml.d/9.yml":  "not read",
			}, nil, nil, 2, []string{"b"},
		},
		{
			"a plus sign appends", map[string]string{
				"config.yaml":          "tls-san: [a]\n",
				"config.yaml.d/2.yaml": "tls-san+: [c, d]\n",
				"config.yaml.d/1.yaml": "tls-san+: b\n",
			}, nil, nil, 6443, []string{"a", "b", "c", "d"},
		},
		{"comments alone", map[string]string{"config.yaml": "# nothing\n"}, nil, nil, 6443, nil},
		{"an empty list", map[string]string{"config.yaml": "tls-san: [a]\n", "config.yaml.d/1.yaml": "tls-san: []\n"}, nil, nil, 6443, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _, err := load(t, tt.files, tt.env, tt.args...)
			require.NoError(t, err)
			require.Equal(t, tt.port, s.HTTPSListenPort)
			require.Equal(t, tt.sans, s.TLSSANs)
		})
	}
}

func TestBadFile(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"unknown key", "data-dir: /d\napi-endpoint: 1\n", `:2: unknown setting "api-endpoint"; "mote server --help" lists them`},
		{"misspelt key", "\n\ndata-dri: /d\n", `:3: unknown setting "data-dri"; did you mean "data-dir"?`},
		{"key with underscores", "NODE_NAME: x\n", `:1: unknown setting "NODE_NAME"; did you mean "node-name"?`},
		{"bad value", "https-listen-port: web\n", `:1: https-listen-port: "web" is not a port (1 to 65535)`},
		{"bad item", "tls-san:\n  - ok\n  - not/ok\n", `:3: tls-san: "not/ok" is neither a DNS name nor an IP address`},
		{"bad choice", "cni: calico\n", `:1: cni: "calico" is not one of bridge, none`},
		{"list for a value", "data-dir: [/a]\n", `:1: data-dir: is not a single value`},
		{"mapping for a list", "tls-san: {a: b}\n", `:1: tls-san: is not a list`},
		{"appending to a value", "data-dir+: /a\n", `:1: data-dir+: is not a list, so nothing can be appended to it`},
		{"no value", "data-dir:\n", `:1: data-dir: has no value`},
		{"twice", "cni: none\ncni: bridge\n", `:2: cni is set twice`},
		{"not a mapping", "- a\n", `:1: not a mapping of settings, such as "data-dir: /data"`},
		{"not YAML", "a: b\n c: d\n", `:2: mapping values are not allowed in this context`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, dir, err := load(t, map[string]string{"config.yaml.d/x.yaml": tt.text}, nil)
			require.EqualError(t, err, filepath.Join(dir, "config.yaml.d/x.yaml")+tt.want)
		})
	}
}

func TestBadValue(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--data-dir=d"}, `invalid argument "d" for "--data-dir" flag: "d" is not an absolute path`},
		{[]string{"--cluster-cidr=10.42.0.1/16"}, `invalid argument "10.42.0.1/16" for "--cluster-cidr" flag: "10.42.0.1/16" has address bits beyond its length; 10.42.0.0/16 would not`},
		{[]string{"--node-taint=a=b"}, `invalid argument "a=b" for "--node-taint" flag: "a=b" is not a taint, name=value:effect (NoSchedule, PreferNoSchedule or NoExecute)`},
		{[]string{"--kubelet-arg=max-pods"}, `invalid argument "max-pods" for "--kubelet-arg" flag: "max-pods" is not an argument, name=value`},
		{[]string{"--cluster-dns=10.0.0.1"}, `cluster-dns 10.0.0.1 is not in service-cidr 10.43.0.0/16`},
		{[]string{"--service-cidr=10.42.9.0/24"}, `cluster-cidr 10.42.0.0/16 and service-cidr 10.42.9.0/24 overlap`},
		{[]string{"--cluster-cidr=10.42.0.0/26"}, `cluster-cidr 10.42.0.0/26 is too small: at least a /24 is needed`},
	} {
		_, _, err := load(t, nil, nil, tt.args...)
		require.EqualError(t, err, tt.want)
	}
	_, _, err := load(t, nil, map[string]string{"MOTE_PROXY": "ipvs"})
	require.EqualError(t, err, `MOTE_PROXY: "ipvs" is not one of auto, nftables, iptables, none`)
}

func TestArgumentsMayHaveDashes(t *testing.T) {
	s, _, err := load(t, nil, nil, "--kubelet-arg=--eviction-hard=memory.available<5%,nodefs.available<1%", "--kubelet-arg", "v=4")
	require.NoError(t, err)
	require.Equal(t, []string{"eviction-hard=memory.available<5%,nodefs.available<1%", "v=4"}, s.KubeletArgs)
}

func TestConfigFileThatIsNotThere(t *testing.T) {
	fs := pflag.NewFlagSet("server", pflag.ContinueOnError)
	l := Register(fs, "server")
	_, err := l.Load(func(name string) string {
		return map[string]string{"MOTE_CONFIG": "/nowhere/config.yaml"}[name]
	})
	require.EqualError(t, err, "read configuration: open /nowhere/config.yaml: no such file or directory")
}

// TestTable checks that all rows have the same shape.
func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range Table() {
		require.False(t, seen[s.Name], "%s is listed twice", s.Name)
		seen[s.Name] = true
		require.NotEmpty(t, s.Help, s.Name)
		require.Contains(t, Sections(), s.Section)
		require.False(t, s.Default != "" && s.DefaultHelp != "", "%s has two defaults", s.Name)
	}
}

func TestSnapshotSchedule(t *testing.T) {
	off, _, err := load(t, nil, map[string]string{"MOTE_SNAPSHOT_SCHEDULE": "off"})
	require.NoError(t, err)
	require.Nil(t, off.SnapshotSchedule)
	for text, want := range map[string]string{
		"twice a day": `MOTE_SNAPSHOT_SCHEDULE: "twice a day" is not a schedule such as "0 */12 * * *" or "@every 6h"`,
		"0 0 30 2 *":  `MOTE_SNAPSHOT_SCHEDULE: "0 0 30 2 *" is a time that never comes; off switches it off`,
	} {
		_, _, err := load(t, nil, map[string]string{"MOTE_SNAPSHOT_SCHEDULE": text})
		require.ErrorContains(t, err, want)
	}
	_, _, err = load(t, nil, map[string]string{"MOTE_SNAPSHOT_RETENTION": "0"})
	require.ErrorContains(t, err, `"0" is not a number from 1`)
}

func TestDatastoreQuota(t *testing.T) {
	s, _, err := load(t, nil, map[string]string{"MOTE_DATASTORE_QUOTA": "500Mi"})
	require.NoError(t, err)
	require.EqualValues(t, 500<<20, s.DatastoreQuota)
	for _, text := range []string{"much", "0", "-1Gi"} {
		_, _, err := load(t, nil, map[string]string{"MOTE_DATASTORE_QUOTA": text})
		require.ErrorContains(t, err, `MOTE_DATASTORE_QUOTA: "`+text+`" is not a size such as 500Mi or 8Gi`)
	}
}

// TestFilesOfEverybody checks the owner and mode of configuration files: a user who can write one
// can become root with it.
func TestFilesOfEverybody(t *testing.T) {
	dir := t.TempDir()
	main, dropIn := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "config.yaml.d", "1.yaml")
	require.NoError(t, os.Mkdir(filepath.Dir(dropIn), 0o755))
	for _, path := range []string{main, dropIn} {
		require.NoError(t, os.WriteFile(path, []byte("log-level: warn\n"), 0o644))
	}
	load := func() error {
		flags := pflag.NewFlagSet("server", pflag.ContinueOnError)
		loader := Register(flags, "server")
		require.NoError(t, flags.Parse([]string{"--config=" + main}))
		_, err := loader.Load(func(string) string { return "" })
		return err
	}
	require.NoError(t, load())
	for _, path := range []string{main, dropIn, filepath.Dir(dropIn)} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(path, 0o777))
		require.ErrorContains(t, load(), "lets other users change it; run chmod go-w "+path)
		require.NoError(t, os.Chmod(path, info.Mode()))
	}
	require.NoError(t, load())
}
