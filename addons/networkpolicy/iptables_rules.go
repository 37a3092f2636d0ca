package networkpolicy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mote-k8s/mote/addons/api"
)

// multiportMax is the number of ports that a rule of iptables can name. A range counts twice.
const multiportMax = 15

// chainsOf returns a ruleset in the syntax of iptables-restore: the rules of each chain, equal to
// those that nft.go makes for nftables.
func chainsOf(r *ruleset) map[string][]string {
	chains := make(map[string][]string)
	for name, rules := range r.chains {
		chains[chainName(name)] = []string{}
		for _, rule := range rules {
			chains[chainName(name)] = append(chains[chainName(name)], rule.iptables()...)
		}
	}
	to, from := chainName(chainTo), chainName(chainFrom)
	chains[chainName("forward")] = forwardChain(r.bridge)
	chains[from] = answers()
	if r.family.key == "ip6" {
		for _, kind := range []string{"router-solicitation", "neighbour-solicitation", "neighbour-advertisement"} {
			chains[from] = append(chains[from], "-p ipv6-icmp --icmpv6-type "+kind+" -j ACCEPT")
		}
	}
	chains[from] = append(chains[from],
		matchSet(setKnown, "src")+matchSet(setKnown, "dst")+"-j "+chainName(setSelf),
		matchSet(setEgress, "src")+"-g "+chainName("by "+setEgress),
		matchSet(setKnown, "src")+"-g "+to,
		"-j DROP")
	chains[to] = []string{
		matchSet(setIngress, "dst") + "-g " + chainName("by "+setIngress),
		matchSet(setKnown, "dst") + "-j ACCEPT",
	}
	if r.services.IsValid() && r.family.has(r.services.Addr()) {
		// This Service has no endpoints, or the packet would have a pod's address by now.
		// kube-proxy refuses it, in a later table.
		chains[to] = append(chains[to], "-d "+r.services.String()+" -m conntrack --ctstate NEW -j ACCEPT")
	}
	chains[to] = append(chains[to], "-o "+r.bridge+" -j DROP", "-j ACCEPT")
	chains[chainName(setSelf)] = []string{}
	for _, pair := range slices.Sorted(maps.Keys(r.self)) {
		address, _, _ := strings.Cut(pair, " . ")
		chains[chainName(setSelf)] = append(chains[chainName(setSelf)], "-s "+address+" -d "+address+" -j ACCEPT")
	}
	chains[chainName("by "+setEgress)] = dispatch(r.egress, chainTo, "src")
	chains[chainName("by "+setIngress)] = dispatch(r.ingress, accept, "dst")
	return chains
}

// droppingChains returns the chains of the other family. No pod is known to have an address of it,
// so they drop all packets from pods.
func droppingChains(r *ruleset) map[string][]string {
	return map[string][]string{
		chainName("forward"): forwardChain(r.bridge),
		chainName(chainFrom): append(answers(), "-j DROP"),
		chainName(chainTo):   {"-o " + r.bridge + " -j DROP", "-j ACCEPT"},
	}
}

func answers() []string {
	return []string{"-m conntrack --ctdir REPLY -j ACCEPT", "-m conntrack --ctstate RELATED -j ACCEPT"}
}

func forwardChain(bridge string) []string {
	return slices.Concat([]string{
		"-i " + bridge + " -g " + chainName(chainFrom), "! -o " + bridge + " -j RETURN",
	}, answers(), []string{"-g " + chainName(chainTo)})
}

// dispatch returns the rules that lead to the chain of a pod. Packets of a pod that is in no set
// yet, or in none any more, are dropped.
func dispatch(verdicts map[string]string, free, direction string) []string {
	judges := make(map[string]bool)
	for _, target := range verdicts {
		if target != free {
			judges[target] = true
		}
	}
	var lines []string
	for _, judge := range slices.Sorted(maps.Keys(judges)) {
		lines = append(lines, matchSet(judge, direction)+"-g "+chainName(judge))
	}
	return append(lines, "-j DROP")
}

func matchSet(name, direction string) string {
	return "-m set --match-set " + ipsetPrefix + name + " " + direction + " "
}

// iptables returns the rule in as many lines as it needs.
func (r rule) iptables() []string {
	var lines []string
	for _, peers := range r.iptablesPeers() {
		for _, ports := range r.iptablesPorts() {
			lines = append(lines, peers+ports+r.iptablesTarget())
		}
	}
	return lines
}

func (r rule) iptablesPeers() []string {
	long := map[string]string{"saddr": "src", "daddr": "dst"}[r.field]
	switch {
	case r.marked:
		return []string{fmt.Sprintf("-m mark --mark %#x/%#x ", api.IngressMark, api.IngressMark)}
	case r.exact.IsValid():
		return []string{"-d " + r.exact.String() + " "}
	case r.peers != "":
		return []string{matchSet(r.peers, long)}
	case len(r.spans) > 0:
		var lines []string
		for _, s := range r.spans {
			lines = append(lines, fmt.Sprintf("-m iprange --%s-range %s-%s ", long, s.first, s.last))
		}
		return lines
	}
	return []string{""}
}

func (r rule) iptablesPorts() []string {
	switch {
	case r.portSet != "":
		return []string{"-p " + r.protocol + " " + matchSet(r.portSet, "dst,dst")}
	case len(r.ports) == 0 && r.protocol != "":
		return []string{"-p " + r.protocol + " "}
	case len(r.ports) == 0:
		return []string{""}
	}
	var lines, named []string
	room := multiportMax
	flush := func() {
		lines = append(lines, "-p "+r.protocol+" -m multiport --dports "+strings.Join(named, ",")+" ")
		named, room = nil, multiportMax
	}
	for _, p := range r.ports {
		if room < 2 {
			flush()
		}
		if p.first == p.last {
			named, room = append(named, fmt.Sprint(p.first)), room-1
		} else {
			named, room = append(named, fmt.Sprintf("%d:%d", p.first, p.last)), room-2
		}
	}
	flush()
	return lines
}

func (r rule) iptablesTarget() string {
	switch {
	case r.target == accept:
		return "-j ACCEPT"
	case r.target == drop:
		return "-j DROP"
	case r.jump:
		return "-j " + chainName(r.target)
	}
	return "-g " + chainName(r.target)
}
