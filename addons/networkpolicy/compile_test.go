package networkpolicy

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
)

// admitted returns the rules of the only policy's chain in the syntax of nft. The meaning of a set
// replaces its name.
func admitted(t *testing.T, s state, prefix string) []string {
	t.Helper()
	r := compile(s)
	var lines []string
	for _, rule := range r.chains[chainOf(prefix, s.policies[0])] {
		line := rule.nft(s.family)
		if comment := r.comments[rule.peers]; comment != "" {
			line = strings.ReplaceAll(line, "@"+rule.peers, "@("+comment+")")
		}
		lines = append(lines, line)
	}
	return lines
}

func TestCompiledRules(t *testing.T) {
	for _, c := range []struct {
		prefix, policy string
		want           []string
	}{
		{"ingress-", in(``), nil},
		{"ingress-", in(`{}`), []string{"accept"}},
		{"ingress-", in(`{ports: [{port: 443}, {port: 80}, {port: 81, endPort: 90}, {protocol: UDP}, {protocol: SCTP, port: 1}]}`), []string{
			"meta l4proto udp accept", "sctp dport { 1 } accept", "tcp dport { 80-90, 443 } accept",
		}},
		{"ingress-", in(`{from: [{podSelector: {matchLabels: {app: x}}}, {ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: http}]}`), []string{
			"ip saddr @(namespace a pods [app=x]) ip daddr . tcp dport @port-tcp-http accept",
			"ip saddr { 10.0.0.0-10.255.255.255 } ip daddr . tcp dport @port-tcp-http accept",
		}},
		{"ingress-", in(`{from: [{namespaceSelector: {}}]}`), []string{
			"ip saddr @(namespaces [] pods []) accept", "meta mark & 0x1000000 == 0x1000000 accept",
		}},
		{"egress-", out(`{to: [{namespaceSelector: {matchLabels: {team: blue}}}], ports: [{port: 53, protocol: UDP}]}`), []string{
			"ip daddr @(namespaces [team=blue] pods []) udp dport { 53 } goto to-pod",
		}},
		{"egress-", out(`{to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}]}`), []string{
			"ip daddr @(namespaces [] pods []) udp dport { 53 } goto to-pod", "ip daddr 10.42.0.1 udp dport { 10053 } goto to-pod",
		}},
		{"egress-", out(`{ports: [{port: 1, endPort: 65535}]}`), []string{
			"tcp dport { 1-65535 } goto to-pod", "ip daddr 10.42.0.1 tcp dport { 10053 } goto to-pod", "ip daddr 10.42.0.1 tcp dport { 9153 } goto to-pod",
		}},
	} {
		require.Equal(t, c.want, admitted(t, testCluster(c.policy), c.prefix), c.policy)
	}
}

func TestNoPolicyNoRule(t *testing.T) {
	r := render(compile(testCluster()))
	require.Empty(t, r.chains)
	require.Empty(t, r.sets)
}

// TestOnlyWhatDiffersIsWritten counts the writes for each kind of change.
func TestOnlyWhatDiffersIsWritten(t *testing.T) {
	nft := knftables.NewFake(knftables.InetFamily, table)
	before := testCluster(denyWeb, in(`{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: http}]}`))
	changed := func(change func(s *state)) string {
		s := before
		change(&s)
		tx := nft.NewTransaction()
		render(compile(before)).become(tx, render(compile(s)))
		return tx.String()
	}
	require.Empty(t, changed(func(*state) {}))
	require.Equal(t, 3, strings.Count(changed(func(s *state) {
		s.pods = append(s.pods[:len(s.pods):len(s.pods)], &pod{
			namespace: "a", labels: labels.Set{"app": "client"}, here: true, addresses: []netip.Addr{netip.MustParseAddr("10.42.0.99")},
		})
	}), "\n"), "a pod: its two verdicts, and its membership among the clients")
	require.Equal(t, 3, strings.Count(changed(func(s *state) { s.pods = s.pods[:3] }), "\n"),
		"a pod that goes: its verdicts, and its named port")
}

// failingNFT fails once.
type failingNFT struct {
	knftables.Interface
	fail bool
}

func (f *failingNFT) Run(ctx context.Context, tx *knftables.Transaction) error {
	if f.fail {
		f.fail = false
		return errors.New("no")
	}
	return f.Interface.Run(ctx, tx)
}

func TestStaleChainThatCannotBeRemoved(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, table)
	nft := &failingNFT{Interface: fake}
	rules := &nftables{nft: nft, stale: make(map[string]time.Time)}
	require.NoError(t, rules.write(t.Context(), compile(testCluster(denyWeb))))
	want := fake.Dump()
	require.NoError(t, rules.write(t.Context(), compile(testCluster())))
	require.NotEmpty(t, rules.stale)
	for chain := range rules.stale {
		rules.stale[chain] = time.Now().Add(-2 * staleAfter)
	}
	nft.fail = true
	require.NoError(t, rules.write(t.Context(), compile(testCluster(denyWeb))))
	require.False(t, nft.fail)
	require.Empty(t, rules.stale)
	require.Equal(t, want, fake.Dump(), "all is replaced")
}

func TestNamesFit(t *testing.T) {
	long := &policy{namespace: strings.Repeat("n", 63), name: strings.Repeat("a.b-", 63)}
	other := &policy{namespace: long.namespace, name: long.name + "c"}
	require.NotEqual(t, chainOf("ingress-", long), chainOf("ingress-", other))
	require.LessOrEqual(t, len(chainOf("ingress-", long)), 100)
}

func podObject(name, uid, node string, phase corev1.PodPhase, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: types.UID(uid)}}
	p.Spec.NodeName, p.Status.Phase = node, phase
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

// TestWhoHasWhichAddress checks that the plugins' results take priority over the API.
func TestWhoHasWhichAddress(t *testing.T) {
	mirror := podObject("static", "object", "here", corev1.PodPending)
	mirror.Annotations = map[string]string{hashAnnotation: "hash"}
	hosted := podObject("hosted", "6", "here", corev1.PodRunning, nodeIP)
	hosted.Spec.HostNetwork = true
	objects := []any{
		podObject("starting", "1", "here", corev1.PodPending),
		podObject("going", "2", "here", corev1.PodRunning, "10.42.0.11"), // its address was given to "starting"
		podObject("again", "4", "here", corev1.PodPending),               // 3 had its name before
		podObject("done", "5", "here", corev1.PodSucceeded, "10.42.0.14"),
		podObject("far", "7", "there", corev1.PodRunning, "10.42.1.2", "fd00::2"),
		mirror, hosted,
	}
	at := func(uid, ip string) []attachment {
		return []attachment{{uid: uid, addresses: []netip.Addr{netip.MustParseAddr(ip)}}}
	}
	attached := map[string][]attachment{
		"a/starting": at("1", "10.42.0.11"), "a/again": at("3", "10.42.0.12"), "a/static": at("hash", "10.42.0.13"),
	}
	taken := map[netip.Addr]bool{}
	for _, list := range attached {
		taken[list[0].addresses[0]] = true
	}
	got := make(map[string]bool)
	for _, p := range podsOf(objects, "here", attached, taken, familyOf(netip.MustParseAddr(nodeIP))) {
		require.Len(t, p.addresses, 1)
		got[p.addresses[0].String()] = p.here
	}
	require.Equal(t, map[string]bool{"10.42.0.11": true, "10.42.0.13": true, "10.42.1.2": false}, got)
}
