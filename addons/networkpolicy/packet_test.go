package networkpolicy

import (
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/mote-k8s/mote/addons/api"
)

func castagnoli(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// dnsServer returns the cluster's DNS server as policies see it.
func dnsServer() api.Server {
	return api.Server{
		Namespace: api.NamespaceSystem, Labels: map[string]string{"k8s-app": "kube-dns"}, Address: netip.MustParseAddr(nodeIP),
		Ports: []api.ServerPort{
			{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, Served: 10053},
			{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, Served: 10053},
			{Name: "metrics", Protocol: corev1.ProtocolTCP, Port: 9153, Served: 9153},
		},
	}
}

// testCluster returns the state that the tables below start from: pods web, db and client in
// namespace a, and other in namespace b. Their named port "http" is 8080, except on db, where it is
// 81.
func testCluster(policies ...string) state {
	s := state{
		family: familyOf(netip.MustParseAddr(nodeIP)), bridge: bridge, servers: []api.Server{dnsServer()},
		services: netip.MustParsePrefix("10.43.0.0/16"),
		namespaces: map[string]labels.Set{
			"a":                 {"kubernetes.io/metadata.name": "a", "team": "red"},
			"b":                 {"kubernetes.io/metadata.name": "b", "team": "blue"},
			api.NamespaceSystem: {"kubernetes.io/metadata.name": api.NamespaceSystem},
		},
	}
	for i, name := range []string{"web", "db", "client", "other"} {
		p := &pod{
			namespace: "a", labels: labels.Set{"app": name}, here: true,
			addresses: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.42.0.%d", 11+i))},
			ports:     []namedPort{{"http", "tcp", 8080}},
		}
		switch name {
		case "other":
			p.namespace = "b"
		case "db":
			p.ports[0].port = 81
		}
		s.pods = append(s.pods, p)
	}
	for i, text := range policies {
		np := &networkingv1.NetworkPolicy{}
		np.Namespace, np.Name = "a", fmt.Sprintf("p%d", i)
		if err := yaml.UnmarshalStrict([]byte("spec: "+text), np); err != nil {
			panic(err)
		}
		p, problems := parse(np, s.family)
		if len(problems) > 0 {
			panic(fmt.Sprint(problems))
		}
		s.policies = append(s.policies, p)
	}
	return s
}

const (
	denyAll    = `{podSelector: {}, policyTypes: [Ingress, Egress]}`
	denyWeb    = `{podSelector: {matchLabels: {app: web}}}`
	denyOut    = `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}`
	webIngress = `{podSelector: {matchLabels: {app: web}}, ingress: [%s]}`
	cliEgress  = `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [%s]}`
)

func in(rule string) string  { return fmt.Sprintf(webIngress, rule) }
func out(rule string) string { return fmt.Sprintf(cliEgress, rule) }

// TestPackets sends packets of every kind through rules of every kind.
func TestPackets(t *testing.T) {
	for _, path := range []struct {
		name     string
		isolated bool
		open     func() (enforcer, error)
	}{
		{"bridged", false, func() (enforcer, error) { return openNFTables() }},
		{"routed", true, func() (enforcer, error) { return openNFTables() }},
		{"iptables", false, func() (enforcer, error) { return openIPTables(familyOf(netip.MustParseAddr(nodeIP))) }},
	} {
		t.Run(path.name, func(t *testing.T) {
			l := newLab(t, path.isolated, "web", "db", "client", "other", "fresh")
			l.translate()
			var rules enforcer
			l.in(l.node, func() {
				var err error
				rules, err = path.open()
				require.NoError(t, err)
			})
			for _, c := range packetCases() {
				t.Run(c.name, func(t *testing.T) {
					l.in(l.node, func() { require.NoError(t, rules.write(t.Context(), compile(testCluster(c.policies...)))) })
					for expectation := range strings.Lines(c.expect) {
						if strings.TrimSpace(expectation) != "" {
							l.reach(t, expectation)
						}
					}
				})
			}
			t.Run("closed", func(t *testing.T) {
				l.in(l.node, func() { require.NoError(t, rules.write(t.Context(), closed(familyOf(l.node.address), bridge))) })
				for _, expectation := range []string{
					"client web tcp 80 no", "client node tcp 80 no", "client outside tcp 80 no", "outside web tcp 80 no",
					"ingress web tcp 80 no", "node web tcp 80 yes", "outside node tcp 80 yes",
				} {
					l.reach(t, expectation)
				}
			})
			t.Run("no endpoints", func(t *testing.T) { testNoEndpoints(t, l, rules, path.name == "iptables") })
			t.Run("cut", func(t *testing.T) { testCut(t, l, rules) })
			t.Run("next life", func(t *testing.T) { testNextLife(t, l, path.open) })
		})
	}
}

// translate redirects Services' addresses like kube-proxy: 10.43.0.10:53 to DNS, 10.43.0.20:80 to
// web:8080.
func (l *lab) translate() {
	l.in(l.node, func() {
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(`
table ip services {
	chain translate {
		ip daddr 10.43.0.10 udp dport 53 dnat to 10.42.0.1:10053
		ip daddr 10.43.0.10 tcp dport 53 dnat to 10.42.0.1:10053
		ip daddr 10.43.0.20 tcp dport 80 dnat to 10.42.0.11:8080
		ip daddr 192.0.2.1 tcp dport 30080 dnat to 10.42.0.11:8080
	}
	chain prerouting {
		type nat hook prerouting priority dstnat;
		goto translate
	}
	chain output {
		type nat hook output priority -100;
		goto translate
	}
	chain postrouting {
		type nat hook postrouting priority srcnat;
		ip saddr 10.42.0.11 ip daddr 10.42.0.11 masquerade
	}
	chain forward {
		type filter hook forward priority filter;
		ip daddr 10.43.0.30 reject
	}
}
`)
		printed, err := cmd.CombinedOutput()
		require.NoError(l.t, err, string(printed))
	})
}

// testNoEndpoints checks that policies of other pods do not stop kube-proxy, whose table is older,
// from refusing packets to a Service without endpoints. For an isolated pod the packets are refused
// too, except where mote's rules run before kube-proxy's: there they are dropped.
func testNoEndpoints(t *testing.T, l *lab, rules enforcer, before bool) {
	l.in(l.node, func() {
		link, err := netlink.LinkByName(bridge)
		require.NoError(t, err)
		_, services, err := net.ParseCIDR("10.43.0.0/16")
		require.NoError(t, err)
		require.NoError(t, netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: services}))
	})
	for policy, refused := range map[string]bool{denyWeb: true, denyOut: !before} {
		l.in(l.node, func() {
			// Write an empty table, so that the next one is the youngest.
			require.NoError(t, rules.write(t.Context(), compile(testCluster())))
			require.NoError(t, rules.write(t.Context(), compile(testCluster(policy))))
		})
		var err error
		l.in(l.hosts["client"], func() { err = echo("tcp", "10.43.0.30:80", 0, arrives) })
		require.Error(t, err)
		require.Equal(t, refused, errors.Is(err, syscall.ECONNREFUSED), "%s: %v", policy, err)
	}
}

// testNextLife finds the rules of a previous run, replaces them and removes them.
func testNextLife(t *testing.T, l *lab, open func() (enforcer, error)) {
	l.in(l.node, func() {
		first, err := open()
		require.NoError(t, err)
		require.NoError(t, first.write(t.Context(), compile(testCluster(denyAll, in(`{ports: [{port: http}]}`)))))
		second, err := open()
		require.NoError(t, err)
		present, err := second.present(t.Context())
		require.NoError(t, err)
		require.True(t, present)
		require.NoError(t, second.write(t.Context(), compile(testCluster(denyWeb))))
		again := packetRules(t)
		third, err := open()
		require.NoError(t, err)
		require.NoError(t, third.write(t.Context(), compile(testCluster(denyWeb))))
		require.Equal(t, again, packetRules(t))
		require.NoError(t, third.remove(t.Context()))
		present, err = third.present(t.Context())
		require.NoError(t, err)
		require.False(t, present)
		require.NotContains(t, packetRules(t), "MOTE-NP")
		require.NotContains(t, packetRules(t), table)
		require.NotContains(t, packetRules(t), ipsetPrefix)
	})
}

// TestRemovedRulesComeBack checks that the rules come back after a firewall reload has removed all
// tables.
func TestRemovedRulesComeBack(t *testing.T) {
	l := newLab(t, true, "web", "client")
	l.in(l.node, func() {
		rules, err := openNFTables()
		require.NoError(t, err)
		require.NoError(t, rules.write(t.Context(), compile(testCluster(denyWeb))))
		before := packetRules(t)
		changed := make(chan struct{}, 10)
		stop, err := rules.watchLoss(func() { changed <- struct{}{} })
		require.NoError(t, err)
		defer stop()
		require.NoError(t, exec.Command("nft", "flush", "ruleset").Run())
		<-changed
		require.NotContains(t, packetRules(t), table)
		require.NoError(t, rules.write(t.Context(), compile(testCluster(denyWeb))))
		require.Equal(t, before, packetRules(t))
		<-changed // the event of the own replacement
		require.NoError(t, rules.write(t.Context(), compile(testCluster(denyWeb))))
		require.Empty(t, changed)
	})
}

// packetRules returns the rules of the calling thread's namespace, with the names of sets.
func packetRules(t *testing.T) string {
	t.Helper()
	printed, err := exec.Command("nft", "-s", "list", "ruleset").CombinedOutput()
	require.NoError(t, err, string(printed))
	sets, err := netlink.IpsetListAll()
	require.NoError(t, err)
	for _, set := range sets {
		printed = append(printed, set.SetName...)
	}
	return string(printed)
}

// testCut applies a policy while connections are open.
func testCut(t *testing.T, l *lab, rules enforcer) {
	write := func(policies ...string) {
		l.in(l.node, func() { require.NoError(t, rules.write(t.Context(), compile(testCluster(policies...)))) })
	}
	write()
	connect := func(from string) net.Conn {
		var conn net.Conn
		var err error
		l.in(l.hosts[from], func() { conn, err = dialer(0, arrives).Dial("tcp", "10.42.0.11:80") })
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, ping(conn, arrives))
		return conn
	}
	client, other, outside := connect("client"), connect("other"), connect("outside")
	write(in(`{from: [{podSelector: {matchLabels: {app: client}}}]}`))
	require.NoError(t, ping(client, arrives), "what is still allowed goes on")
	require.Error(t, ping(other, refused), "what is not allowed any more is cut")
	require.Error(t, ping(outside, refused))
}

// TestSix checks that the kernel accepts the rules of an IPv6 cluster, of both kinds.
func TestSix(t *testing.T) {
	l := newLab(t, true)
	address := netip.MustParseAddr("fd00::1")
	s := testCluster()
	s.family, s.servers[0].Address = familyOf(address), address
	for i, p := range s.pods {
		p.addresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("fd00::1:%d", i))}
	}
	for _, spec := range []string{
		denyAll, in(`{from: [{ipBlock: {cidr: "fd01::/16", except: ["fd01:2::/32"]}}, {podSelector: {}}], ports: [{port: http}, {port: 1, endPort: 9}]}`),
		out(`{to: [{namespaceSelector: {}}]}`),
	} {
		p, problems := parse(policyOf(t, spec), s.family)
		require.Empty(t, problems)
		s.policies = append(s.policies, p)
	}
	l.in(l.node, func() {
		nft, err := openNFTables()
		require.NoError(t, err)
		ipt, err := openIPTables(s.family)
		require.NoError(t, err)
		for _, rules := range []enforcer{nft, ipt} {
			require.NoError(t, rules.write(t.Context(), compile(s)))
			require.NoError(t, rules.remove(t.Context()))
		}
	})
}
