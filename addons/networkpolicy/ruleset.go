package networkpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
)

// ruleset is the required content of the kernel. It is compiled again at each change, and only
// differences are written.
//
// The diagram shows the way of a packet. Each arrow is one lookup of an address in a map of
// verdicts:
//
//	from a pod ─► chainFrom ─► egress[source] ─► "from-…": a jump per policy ─► drop
//	                              │ not isolated              │ allowed
//	to a pod ──────────────────►  chainTo  ◄──────────────────┘
//	                              └► ingress[destination] ─► "to-…": a jump per policy ─► drop
//	                                    │ not isolated           │ allowed
//	                                    └──────► accept ◄────────┘
//
// An address of the bridge that is in neither map belongs to a pod that is not known yet. Its
// packets are dropped.
type ruleset struct {
	family family
	// enforcing is false if there is no policy. Then all packets pass, at no cost.
	enforcing bool
	// bridge is the interface of the pods.
	bridge string
	// services holds the addresses of Services, if they are known. Only rules of iptables need
	// them.
	services netip.Prefix
	// sets holds sets by name. A set has addresses ("10.42.0.7"), or addresses with ports
	// ("10.42.0.7 . 8080") if its name is in portSets.
	sets     map[string]map[string]bool
	portSets map[string]bool
	// comments describe, for people, the selector that a set stands for.
	comments map[string]string
	// self holds the addresses of isolated pods, which can always reach themselves.
	self map[string]bool
	// egress and ingress map each pod's address to the chain that checks its packets.
	egress, ingress map[string]string
	// chains holds the chains of policies and pods by name. The base chains follow from the rest.
	chains map[string][]rule
}

// These are chains and verdicts that rules lead to.
const (
	chainFrom = "from-pod"
	chainTo   = "to-pod"
	accept    = "accept"
	drop      = "drop"
)

// rule is one line of a chain. All fields that are not empty must match.
type rule struct {
	// field is "saddr" or "daddr": the address that is compared with the peers. At most one kind of
	// peers is set.
	field string
	peers string // name of a set
	spans []span[netip.Addr]
	exact netip.Addr
	// marked matches packets that carry api.IngressMark.
	marked bool

	protocol string // tcp, udp, sctp
	ports    []span[int32]
	portSet  string // name of a set of destinations with ports

	// target is a chain or a verdict. With jump, the packet returns from the chain if no rule in it
	// matched.
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

// closed returns a ruleset that lets no packet of a pod pass, because it knows no pod. Nodes reach
// pods, and pods answer.
func closed(f family, bridge string) *ruleset {
	r := newRuleset(f, bridge)
	r.enforcing = true
	return r
}

// family is the address family of the pod network, in nftables' terms.
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

// hashed returns a name for a text that is too long or has unsuitable characters. It begins with
// prefix and ends with as much of readable as fits: names in nft have at most 128 characters in
// older kernels.
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
