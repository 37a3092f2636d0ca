package server

import (
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	cliflag "k8s.io/component-base/cli/flag"
)

func TestBadArgumentsMakeNothing(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"unknown apiserver argument": {func(c *Config) { c.APIServerArgs = []string{"foo=bar"} },
			`unknown --apiserver-arg "foo": there is no such argument; give name=value without leading dashes`},
		"dashes": {func(c *Config) { c.SchedulerArgs = []string{"--v=4"} },
			`unknown --scheduler-arg "--v": there is no such argument; give name=value without leading dashes`},
		"unknown controller manager argument": {func(c *Config) { c.ControllerManagerArgs = []string{"foo"} },
			`unknown --controller-manager-arg "foo": there is no such argument; give name=value without leading dashes`},
		"no value": {func(c *Config) { c.APIServerArgs = []string{"event-ttl"} },
			`invalid --apiserver-arg "event-ttl": it needs a value, as in event-ttl=value`},
		"wrong value": {func(c *Config) { c.APIServerArgs = []string{"event-ttl=soon"} },
			`invalid --apiserver-arg "event-ttl=soon": invalid argument "soon" for "--event-ttl" flag: time: invalid duration "soon"`},
		"log format": {func(c *Config) { c.APIServerArgs = []string{"logging-format=json"} },
			`unsupported --apiserver-arg "logging-format": all parts write mote's log; set its format and level with mote's own options`},
		"no port": {func(c *Config) { c.SchedulerArgs = []string{"secure-port=0"} },
			`unsupported --scheduler-arg "secure-port=0": mote asks this port whether the component is ready`},
		"overlapping networks": {func(c *Config) { c.ServiceCIDR = c.ClusterCIDR },
			`control plane: cluster network 10.42.0.0/16 and service network 10.42.0.0/16 overlap`},
		"a node's pods elsewhere": {func(c *Config) { c.NodeRanges = map[string]netip.Prefix{"a": netip.MustParsePrefix("10.50.0.0/24")} },
			`control plane: pod network 10.50.0.0/24 of node a is not a /24 of the cluster network 10.42.0.0/16`},
		"loopback advertised": {func(c *Config) { c.AdvertiseAddress = netip.MustParseAddr("127.0.0.1") },
			`control plane: advertise address "127.0.0.1" cannot be reached from pods`},
		"relative directory": {func(c *Config) { c.DataDir = "data" },
			`control plane: data directory "data" is not an absolute path`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			made := cfg.DataDir
			test.change(&cfg)
			_, err := Prepare(cfg)
			require.EqualError(t, err, test.want)
			_, err = os.Stat(made)
			require.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}

func TestUsersArgumentReplacesOurs(t *testing.T) {
	newSections := func() (cliflag.NamedFlagSets, *[]string, *bool) {
		var sections cliflag.NamedFlagSets
		modes := sections.FlagSet("a").StringSlice("authorization-mode", []string{"AlwaysAllow"}, "")
		profiling := sections.FlagSet("b").Bool("profiling", false, "")
		return sections, modes, profiling
	}
	ours := []arg{{"authorization-mode", "Node,RBAC"}}

	sections, modes, _ := newSections()
	require.NoError(t, parseArgs(sections, "x-arg", ours, nil))
	require.Equal(t, []string{"Node", "RBAC"}, *modes)

	sections, modes, profiling := newSections()
	require.NoError(t, parseArgs(sections, "x-arg", ours, []string{"authorization_mode=RBAC", "authorization-mode=Webhook", "profiling"}))
	require.Equal(t, []string{"RBAC", "Webhook"}, *modes, "a list that is given twice adds up")
	require.True(t, *profiling)
}

func TestPrepareTwice(t *testing.T) {
	cfg := testConfig(t)
	cfg.APIServerArgs = []string{"feature-gates=MemoryQoS=true", "v=0"}
	_, err := Prepare(cfg)
	require.NoError(t, err)
	before := contents(t, cfg.DataDir)
	_, err = Prepare(cfg)
	require.NoError(t, err)
	require.Equal(t, before, contents(t, cfg.DataDir))
}

func TestHealthAnswers(t *testing.T) {
	body := "[+]ping ok\n[-]poststarthook/rbac/bootstrap-roles failed: reason withheld\n[-]etcd failed: x\nreadyz check failed\n"
	require.Equal(t, "waiting for poststarthook/rbac/bootstrap-roles, etcd", failedChecks(body))
	require.Equal(t, []string{"ping"}, passedChecks(body))
	require.Equal(t, "Unauthorized", failedChecks("Unauthorized\n"))
}
