package agent

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/ciphers"
)

func mustAddr(t *testing.T, text string) netip.Addr {
	t.Helper()
	addr, err := netip.ParseAddr(text)
	require.NoError(t, err)
	return addr
}

func TestConfigValidate(t *testing.T) {
	require.NoError(t, testConfig("/p").validate())
	for want, change := range map[string]func(*Config){
		"DataDir":     func(c *Config) { c.DataDir = "var" },
		"NodeName":    func(c *Config) { c.NodeName = "" },
		"NodeIP":      func(c *Config) { c.NodeIP = netip.Addr{} },
		"cni":         func(c *Config) { c.CNI = "calico" },
		"proxy":       func(c *Config) { c.Proxy = "ipvs" },
		"bridge name": func(c *Config) { c.Bridge = "a-name-of-seventeen" },
		"not inside":  func(c *Config) { c.PodCIDR = netip.MustParsePrefix("10.99.0.0/24") },
		"at least 4":  func(c *Config) { c.PodCIDR = netip.MustParsePrefix("10.42.0.0/31") },
	} {
		config := testConfig("/p")
		change(&config)
		require.ErrorContains(t, config.validate(), want)
	}
}

func TestExtraArguments(t *testing.T) {
	for _, test := range []struct {
		kubelet, proxy, want string
	}{
		{kubelet: "max-pods=5"},
		{kubelet: "maxPods=5"},
		{kubelet: "memorySwap.swapBehavior=NoSwap"},
		{kubelet: "max_pods=5"},
		{kubelet: "no-such=1", want: `unknown kubelet argument "no-such"`},
		{kubelet: "noSuchField.deep=1", want: `unknown kubelet argument "noSuchField.deep"`},
		{kubelet: "max-pods=many", want: "kubelet argument max-pods=many"},
		{kubelet: "root_dir=/x", want: "kubelet argument root-dir: set mote's --kubelet-dir instead"},
		{kubelet: "config=/x", want: "mote makes the configuration"},
		{kubelet: "healthz-port=0", want: "unsupported kubelet argument healthz-port=0"},
		{proxy: "conntrack-min=5"},
		{proxy: "healthz-bind-address=127.0.0.1:10256"},
		{proxy: "healthz-port=0", want: "unsupported kube-proxy argument healthz-bind-address"},
		{proxy: "no-such=1", want: `unknown kube-proxy argument "no-such"`},
		{proxy: "cleanup", want: "kube-proxy argument cleanup"},
	} {
		config := testConfig("/p")
		if test.kubelet != "" {
			config.KubeletArgs = []string{test.kubelet}
		}
		if test.proxy != "" {
			config.ProxyArgs = []string{test.proxy}
		}
		_, err := New(config)
		if test.want == "" {
			require.NoError(t, err, test)
		} else {
			require.ErrorContains(t, err, test.want)
		}
	}
}

func TestKubeletConfiguration(t *testing.T) {
	config := testConfig("/p")
	config.KubeletArgs = []string{"max-pods=5", "memorySwap.swapBehavior=LimitedSwap", "evictionHard={memory.available: 1Mi}"}
	config.NodeLabels = []string{"a=b"}
	config.NodeTaints = []string{"k=v:NoSchedule"}
	server, err := newKubeletServer(config, host{restrictOOM: true, oomScore: 7})
	require.NoError(t, err)
	require.EqualValues(t, 5, server.MaxPods)
	require.Equal(t, "LimitedSwap", server.MemorySwap.SwapBehavior)
	require.Equal(t, "1Mi", server.EvictionHard["memory.available"])
	require.Equal(t, "10%", server.EvictionHard["nodefs.available"])
	require.Equal(t, "b", server.NodeLabels["a"])
	require.Len(t, server.RegisterWithTaints, 1)
	require.EqualValues(t, 7, server.OOMScoreAdj)
	require.Equal(t, cgroupRoot, server.CgroupRoot)
	require.False(t, server.FailCgroupV1)
	require.False(t, server.Authentication.Anonymous.Enabled)
	require.False(t, server.EnableProfilingHandler)
	require.False(t, server.EnableDebugFlagsHandler)
	require.True(t, server.EnableDebuggingHandlers, "exec, attach, logs and port-forward are among them")
	require.Equal(t, ciphers.Names(), server.TLSCipherSuites)
}

// TestKubeletReserves checks that the defaults come from the machine and that the user's arguments
// replace them.
func TestKubeletReserves(t *testing.T) {
	machine := host{capacity: capacity{2, 2048 * mib, 2048 * mib, 32768, 32768}}
	config := testConfig("/p")
	server, err := newKubeletServer(config, machine)
	require.NoError(t, err)
	require.EqualValues(t, podTasks, server.PodPidsLimit)
	require.Equal(t, map[string]string{"cpu": "120m", "memory": "402653184", "pid": "4096"}, server.SystemReserved)

	config.KubeletArgs = []string{"podPidsLimit=100", `systemReserved={"memory":"1Gi"}`}
	server, err = newKubeletServer(config, machine)
	require.NoError(t, err)
	require.EqualValues(t, 100, server.PodPidsLimit)
	require.Equal(t, map[string]string{"cpu": "120m", "memory": "1Gi", "pid": "4096"}, server.SystemReserved)

	config.KubeletArgs = []string{"system-reserved=memory=1Gi", "pod-max-pids=-1"}
	server, err = newKubeletServer(config, machine)
	require.NoError(t, err)
	require.EqualValues(t, -1, server.PodPidsLimit)
	require.Equal(t, "1Gi", server.SystemReserved["memory"])
}

func TestProxyHealthMoves(t *testing.T) {
	for arg, want := range map[string]string{
		"v=0": "10.42.0.1:10256", "healthz_bind_address=127.0.0.2:7": "127.0.0.2:7", "healthz-bind-address=127.0.0.2": "127.0.0.2:10256",
	} {
		config := testConfig("/p")
		config.ProxyArgs = []string{arg}
		_, ports, err := newProxyOptions(config, ProxyNFTables, host{}, "127.0.0.1:0")
		require.NoError(t, err)
		require.Equal(t, proxyPorts{healthz: want, metrics: "127.0.0.1:10249"}, ports, arg)
	}
}

func TestConflist(t *testing.T) {
	data, err := conflist(testConfig("/p"), ProxyNFTables, false)
	require.NoError(t, err)
	var list struct {
		Plugins []struct {
			Type, Backend string
			IPAM          struct {
				Ranges [][]struct{ Subnet, Gateway string }
			}
		}
	}
	require.NoError(t, json.Unmarshal(data, &list))
	require.Equal(t, "10.42.0.1", list.Plugins[0].IPAM.Ranges[0][0].Gateway)
	require.Equal(t, "nftables", list.Plugins[1].Backend)
}

func TestPodResolvConf(t *testing.T) {
	const stub, real = "nameserver 127.0.0.53\nsearch lan\n", "nameserver 192.0.2.1\n"
	for _, test := range []struct{ etc, resolved, want string }{
		{etc: real, want: real},
		{etc: stub, resolved: real, want: real},
		{etc: "nameserver ::1\n" + real, want: real},
		{etc: stub, want: "search lan\n"},
		{want: "# the host has no name server\n"},
	} {
		require.Equal(t, test.want, string(podResolvConf([]byte(test.etc), []byte(test.resolved))))
	}
}

func TestCgroupTrees(t *testing.T) {
	trees, err := cgroupTrees(strings.NewReader(`24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
31 24 0:26 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 24 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
`))
	require.NoError(t, err)
	require.Equal(t, []hierarchy{
		{dir: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
		{dir: "/sys/fs/cgroup/unified", unified: true},
	}, trees)
	require.Equal(t, []string{"cpuset", "memory", "pids"}, missingControllers(trees))
}

func TestGuarded(t *testing.T) {
	require.False(t, guarded([]string{"-P FORWARD ACCEPT"}))
	require.True(t, guarded([]string{"-P FORWARD DROP"}))
	require.True(t, guarded([]string{"-P FORWARD ACCEPT", "-A FORWARD -j DOCKER-USER"}))
	ours := []string{
		"-P FORWARD ACCEPT", "-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL", "-A FORWARD -j KUBE-FORWARD",
		`-A FORWARD -m comment --comment "` + ruleComment + `" -j ` + chainForward,
	}
	require.False(t, guarded(ours))
	require.Equal(t, 3, behindKubeProxy(ours))
	require.Equal(t, 3, behindKubeProxy(append(ours[:3:3], "-A FORWARD -j ufw-before-forward")))
	require.Equal(t, 1, behindKubeProxy([]string{"-P FORWARD DROP"}))
	require.Equal(t, 1, behindKubeProxy([]string{"-P FORWARD ACCEPT", "-A FORWARD -j DROP", "-A FORWARD -j KUBE-FORWARD"}))
}
