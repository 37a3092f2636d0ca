package networkpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
)

// ruleset is what the kernel shall hold. It is compiled anew at each change, and only what differs is written.
//
// The way of a packet; each arrow is one lookup of an address in a map of verdicts:
//
//	from a pod ─► chainFrom ─► egress[source] ─► "from-…": one jump for each policy of the pod ─► drop
//	                              │ not isolated              │ allowed
//	to a pod ──────────────────►  chainTo  ◄──────────────────┘
//	                              └► ingress[destination] ─► "to-…": one jump for each policy of the pod ─► drop
//	                                    │ not isolated           │ allowed
//	                                    └──────► accept ◄────────┘
//
// An address of the bridge that is in neither map belongs to a pod that is not known yet: dropped.
type ruleset struct {
	family family
	// enforcing is false where no policy is: everything passes, at no cost.
	enforcing bool
	// bridge is the interface that pods are behind.
	bridge string
	// services are the addresses of Services, if they are known. Rules of iptables alone need them.
	services netip.Prefix
	// sets of addresses ("10.42.0.7"), or of addresses with ports ("10.42.0.7 . 8080") where portSets has the
	// name, by name.
	sets     map[string]map[string]bool
	portSets map[string]bool
	// comments tell people which selector a set stands for.
	comments map[string]string
	// self are the addresses of isolated pods, which always reach themselves.
	self map[string]bool
	// egress and ingress give each pod's address the chain that judges it.
	egress, ingress map[string]string
	// chains by name: policies' and pods'. The base chains follow from the rest.
	chains map[string][]rule
}

// Chains and verdicts that rules lead to.
const (
	chainFrom = "from-pod"
	chainTo   = "to-pod"
	accept    = "accept"
	drop      = "drop"
)

// rule is one line of a chain: what is not empty must match.
type rule struct {
	// field is "saddr" or "daddr": where peers, of which one at the most is given, are looked for.
	field string
	peers string // name of a set
	spans []span[netip.Addr]
	exact netip.Addr
	// marked are packets that carry api.IngressMark.
	marked bool

	protocol string // tcp, udp, sctp
	ports    []span[int32]
	portSet  string // name of a set of destinations with ports

	// target is a chain or a verdict. jump comes back from the chain when nothing in it matched.
	target string
	jump   bool
}

func newRuleset(f family, bridge string) *ruleset {
	return &ruleset{
		family: f, bridge: bridge,
		sets: make(map[string]map[string]bool), portSets: make(map[string]bool), comments: make(map[string]string),
		self:   make(map[string]bool),
		egress: make(map[string]string), ingress: make(map[string]string), chains: make(map[string][]rule),
	}
}

// closed lets no pod's packet pass, as no pod is known. Nodes reach pods, and pods answer.
func closed(f family, bridge string) *ruleset {
	r := newRuleset(f, bridge)
	r.enforcing = true
	return r
}

// family is the address family of the pod network, in nftables' words.
type family struct {
	key  string // ip, ip6
	addr string // type of an address in a set
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return family{"ip", "ipv4_addr"}
	}
	return family{"ip6", "ipv6_addr"}
}

func (f family) has(a netip.Addr) bool { return a.Is4() == (f.key == "ip") }

// hashed is a name for what is too long or too strange for one. It begins with prefix and ends as readably as
// fits: nft's names have 128 characters in older kernels.
func hashed(prefix, what, readable string) string {
	sum := sha256.Sum256([]byte(what))
	name := prefix + hex.EncodeToString(sum[:8])
	if readable != "" {
		name += "-" + strings.Map(func(c rune) rune {
			if c == '/' || c == '.' || c == '-' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' {
				return c
			}
			return '_'
		}, readable)
	}
	return name[:min(len(name), 100)]
}
