package networkpolicy

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"
)

func policyOf(t *testing.T, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	np := &networkingv1.NetworkPolicy{}
	np.Namespace, np.Name = "a", "p"
	require.NoError(t, yaml.UnmarshalStrict([]byte("spec: "+spec), np))
	return np
}

func TestPolicyTypes(t *testing.T) {
	for spec, want := range map[string][2]bool{
		`{podSelector: {}}`:                                                   {true, false},
		`{podSelector: {}, egress: [{}]}`:                                     {true, true},
		`{podSelector: {}, ingress: [{}]}`:                                    {true, false},
		`{podSelector: {}, policyTypes: [Egress]}`:                            {false, true},
		`{podSelector: {}, policyTypes: [Ingress], egress: [{}]}`:             {true, false},
		`{podSelector: {}, policyTypes: [Egress, Ingress], ingress: [{}]}`:    {true, true},
		`{podSelector: {}, policyTypes: [Egress], ingress: [{}], egress: []}`: {false, true},
	} {
		p, problems := parse(policyOf(t, spec), familyOf(netip.MustParseAddr(nodeIP)))
		require.Empty(t, problems)
		require.Equal(t, want, [2]bool{p.ingress != nil, p.egress != nil}, spec)
	}
}

// TestProblems checks that each problem is reported with its place and admits no peer, and that the
// rest of the policy is enforced.
func TestProblems(t *testing.T) {
	const selector = `{matchExpressions: [{key: a, operator: Near}]}`
	for rule, want := range map[string]string{
		`{from: [{ipBlock: {cidr: 10.0.0.300/8}}]}`:                       `spec.ingress[0], peer 0: ipBlock: "10.0.0.300/8" is not a network; it admits nobody`,
		`{from: [{ipBlock: {cidr: "fd00::/8"}}]}`:                         `spec.ingress[0], peer 0: ipBlock fd00::/8 is of no effect: pods have no address of its family`,
		`{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [x]}}]}`:             `spec.ingress[0], peer 0: ipBlock.except: "x" is not a network; the block admits nobody`,
		`{from: [{podSelector: ` + selector + `}]}`:                       `spec.ingress[0], peer 0: podSelector: "Near" is not a valid label selector operator; it admits nobody`,
		`{from: [{namespaceSelector: ` + selector + `}]}`:                 `spec.ingress[0], peer 0: namespaceSelector: "Near" is not a valid label selector operator; it admits nobody`,
		`{from: [{podSelector: {}}], ports: [{protocol: ICMP, port: 1}]}`: `spec.ingress[0], port 0: protocol ICMP is unknown; it admits nothing`,
		`{from: [{podSelector: {}}], ports: [{port: 9, endPort: 8}]}`:     `spec.ingress[0], port 0: range 9-8 is none; it admits nothing`,
		`{from: [{podSelector: {}}], ports: [{port: "a }"}]}`:             `spec.ingress[0], port 0: name "a }": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-); it admits nothing`,
	} {
		p, problems := parse(policyOf(t, `{podSelector: {}, ingress: [`+rule+`, {from: [{podSelector: {}}]}]}`), familyOf(netip.MustParseAddr(nodeIP)))
		require.Equal(t, []string{want}, problems)
		require.Len(t, p.ingress.rules, 2)
		first := p.ingress.rules[0]
		require.False(t, first.anyPeer || first.anyPort && len(first.ports) > 0, "not what was meant, but not everybody")
		s := testCluster()
		s.policies = []*policy{p}
		chains := compile(s).chains
		require.Len(t, chains[chainOf("ingress-", p)], 1, "only the second rule admits anybody")
	}
	p, problems := parse(policyOf(t, `{podSelector: `+selector+`}`), familyOf(netip.MustParseAddr(nodeIP)))
	require.Nil(t, p)
	require.Equal(t, []string{`spec.podSelector: "Near" is not a valid label selector operator; the policy is not in force`}, problems)
}

func TestBlocks(t *testing.T) {
	for _, c := range []struct{ rule, want string }{
		{`{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}`, "{ 10.0.0.0-10.255.255.255 }"},
		{`{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}`, "{ 10.0.0.0-10.255.255.255 }"},
		{`{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}`, "{ 10.0.0.0-10.255.255.255 }"}, // as older versions accepted it
		{`{from: [{ipBlock: {cidr: 10.0.0.1/32}}]}`, "{ 10.0.0.1 }"},
		{`{from: [{ipBlock: {cidr: 10.0.0.0/24}}, {ipBlock: {cidr: 10.0.1.0/24}}, {ipBlock: {cidr: 10.0.0.128/25}}]}`, "{ 10.0.0.0-10.0.1.255 }"},
		{`{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/28, 10.0.0.255/32, 10.0.0.64/26, 10.0.0.64/30]}}]}`,
			"{ 10.0.0.16-10.0.0.63, 10.0.0.128-10.0.0.254 }"},
		{`{from: [{ipBlock: {cidr: 10.0.1.0/24, except: [10.0.0.0/24, 10.0.1.0/28, 10.0.2.0/24]}}]}`, "{ 10.0.1.16-10.0.1.255 }"},
		{`{from: [{ipBlock: {cidr: 10.0.1.0/24, except: [10.0.3.0/24]}}]}`, "{ 10.0.1.0-10.0.1.255 }"},
		{`{from: [{ipBlock: {cidr: 10.0.1.0/24, except: [10.0.0.0/16]}}]}`, "{  }"},
		{`{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [0.0.0.0/1]}}]}`, "{ 128.0.0.0-255.255.255.255 }"},
		{`{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/24]}}]}`, "{  }"},
		{`{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [128.0.0.0/1]}}, {ipBlock: {cidr: 128.0.0.0/1}}]}`, "{ 0.0.0.0-255.255.255.255 }"},
	} {
		p, problems := parse(policyOf(t, `{podSelector: {}, ingress: [`+c.rule+`]}`), familyOf(netip.MustParseAddr(nodeIP)))
		require.Empty(t, problems)
		require.Equal(t, c.want, list(p.ingress.rules[0].blocks), c.rule)
	}
	v6 := familyOf(netip.MustParseAddr("fd00::1"))
	p, problems := parse(policyOf(t, `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "fd00::/16", except: ["fd00:8000::/17"]}}]}]}`), v6)
	require.Empty(t, problems)
	require.Equal(t, "{ fd00::-fd00:7fff:ffff:ffff:ffff:ffff:ffff:ffff }", list(p.ingress.rules[0].blocks))
}
