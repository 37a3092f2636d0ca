package networkpolicy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/mote-k8s/mote/addons/api"
)

// state holds all inputs of the rules.
type state struct {
	family     family
	bridge     string
	services   netip.Prefix
	namespaces map[string]labels.Set
	pods       []*pod
	policies   []*policy
	// servers are components of this process that policies treat as pods.
	servers []api.Server
}

// pod is a pod with its own addresses.
type pod struct {
	namespace string
	labels    labels.Set
	addresses []netip.Addr
	ports     []namedPort
	// here is true for pods behind this node's bridge, whose packets this node checks.
	here bool
}

type namedPort struct {
	name, protocol string
	port           int32
}

// compiler fills a ruleset. It groups pods once, so that a policy checks the pods of its own
// namespace only.
type compiler struct {
	state
	out         *ruleset
	byNamespace map[string][]*pod
	ingress     labels.Set // labels of the ingress as a peer
}

// compile returns the ruleset of a state. It takes some 100 ns for each pair of a pod and a
// selector that may match it.
func compile(s state) *ruleset {
	c := &compiler{state: s, out: newRuleset(s.family, s.bridge), byNamespace: make(map[string][]*pod), ingress: api.IngressLabels()}
	if len(s.policies) == 0 {
		return c.out
	}
	c.out.enforcing, c.out.services = true, s.services
	policies := make(map[string][]*policy)
	for _, p := range s.policies {
		policies[p.namespace] = append(policies[p.namespace], p)
	}
	for _, p := range s.pods {
		c.byNamespace[p.namespace] = append(c.byNamespace[p.namespace], p)
	}
	for _, p := range s.policies {
		if p.ingress != nil {
			c.out.chains[chainOf("ingress-", p)] = c.ingressRules(p)
		}
		if p.egress != nil {
			c.out.chains[chainOf("egress-", p)] = c.egressRules(p)
		}
	}
	for _, p := range s.pods {
		if p.here {
			c.isolate(p, policies[p.namespace])
		}
	}
	return c.out
}

func chainOf(prefix string, p *policy) string { return hashed(prefix, p.key(), p.key()) }

// isolate maps a pod's addresses to the chains that check its packets. Pods with the same policies
// share chains.
func (c *compiler) isolate(p *pod, policies []*policy) {
	var in, out []string
	for _, candidate := range policies {
		if candidate.ingress == nil && candidate.egress == nil || !candidate.subjects.Matches(p.labels) {
			continue
		}
		if candidate.ingress != nil {
			in = append(in, chainOf("ingress-", candidate))
		}
		if candidate.egress != nil {
			out = append(out, chainOf("egress-", candidate))
		}
	}
	ingress, egress := accept, chainTo
	if len(in) > 0 {
		ingress = c.allOf("to-", in)
	}
	if len(out) > 0 {
		egress = c.allOf("from-", out)
	}
	for _, a := range p.addresses {
		c.out.ingress[a.String()], c.out.egress[a.String()] = ingress, egress
		if len(in)+len(out) > 0 {
			c.out.self[a.String()+" . "+a.String()] = true
		}
	}
}

// allOf returns a chain that calls the chains of several policies and drops packets that none of
// them admits.
func (c *compiler) allOf(prefix string, chains []string) string {
	slices.Sort(chains)
	name := hashed(prefix, strings.Join(chains, " "), "")
	if _, ok := c.out.chains[name]; !ok {
		var rules []rule
		for _, chain := range chains {
			rules = append(rules, rule{target: chain, jump: true})
		}
		c.out.chains[name] = append(rules, rule{target: drop})
	}
	return name
}

func (c *compiler) ingressRules(p *policy) []rule {
	var rules []rule
	for _, a := range p.ingress.rules {
		ports := c.portMatches(a)
		rules = append(rules, c.combine(p, a, "saddr", ports, accept)...)
		if !a.anyPeer && c.selects(p, a, api.NamespaceSystem, c.ingress) {
			for _, r := range ports {
				r.marked, r.target = true, accept
				rules = append(rules, r)
			}
		}
	}
	return rules
}

func (c *compiler) egressRules(p *policy) []rule {
	var rules []rule
	for _, a := range p.egress.rules {
		rules = append(rules, c.combine(p, a, "daddr", c.portMatches(a), chainTo)...)
		for _, s := range c.servers {
			if a.anyPeer || c.selects(p, a, s.Namespace, s.Labels) || contains(a.blocks, s.Address) {
				rules = append(rules, serverRules(a, s)...)
			}
		}
	}
	return rules
}

// serverRules returns rules that admit those ports of a server that the policy's rule would admit
// on the server's pod elsewhere.
func serverRules(a admission, s api.Server) []rule {
	var rules []rule
	for _, sp := range s.Ports {
		protocol := strings.ToLower(string(sp.Protocol))
		admitted := a.anyPort || slices.ContainsFunc(a.ports, func(p port) bool {
			return p.protocol == protocol &&
				(p.whole() || p.name == sp.Name && p.name != "" || p.span.first <= sp.Port && sp.Port <= p.span.last)
		})
		if admitted {
			rules = append(rules, rule{
				field: "daddr", exact: s.Address, protocol: protocol,
				ports: []span[int32]{{sp.Served, sp.Served}}, target: chainTo,
			})
		}
	}
	return rules
}

func contains(spans []span[netip.Addr], a netip.Addr) bool {
	return slices.ContainsFunc(spans, func(s span[netip.Addr]) bool { return !a.Less(s.first) && !s.last.Less(a) })
}

// combine returns a rule for each kind of peer on each kind of port.
func (c *compiler) combine(p *policy, a admission, field string, ports []rule, target string) []rule {
	var rules []rule
	add := func(peers rule) {
		for _, r := range ports {
			r.field, r.peers, r.spans, r.target = field, peers.peers, peers.spans, target
			rules = append(rules, r)
		}
	}
	if a.anyPeer {
		add(rule{})
	}
	for _, selected := range a.peers {
		add(rule{peers: c.peerSet(p, selected)})
	}
	if len(a.blocks) > 0 {
		add(rule{spans: a.blocks})
	}
	return rules
}

// portMatches returns rules that match the ports, without peers and target. There is one rule for
// the numbers of each protocol, and one for each name.
func (c *compiler) portMatches(a admission) []rule {
	if a.anyPort {
		return []rule{{}}
	}
	numbers := make(map[string][]span[int32])
	var rules []rule
	for _, p := range a.ports {
		switch {
		case p.whole():
			rules = append(rules, rule{protocol: p.protocol})
		case p.name != "":
			rules = append(rules, rule{protocol: p.protocol, portSet: c.portSet(p)})
		default:
			numbers[p.protocol] = append(numbers[p.protocol], p.span)
		}
	}
	for _, protocol := range slices.Sorted(maps.Keys(numbers)) {
		rules = append(rules, rule{protocol: protocol, ports: mergePorts(numbers[protocol])})
	}
	return rules
}

// peerSet returns the set of the selected pods' addresses. Equal selectors share a set.
func (c *compiler) peerSet(p *policy, selected peer) string {
	scope := "namespace " + p.namespace
	if selected.namespaces != nil {
		scope = "namespaces [" + selected.namespaces.String() + "]"
	}
	what := scope + " pods [" + selected.pods.String() + "]"
	name := hashed("pods-", what, "")
	if _, ok := c.out.sets[name]; ok {
		return name
	}
	set := make(map[string]bool)
	for namespace, pods := range c.byNamespace {
		if !c.inScope(p, selected, namespace) {
			continue
		}
		for _, candidate := range pods {
			if selected.pods.Matches(candidate.labels) {
				for _, a := range candidate.addresses {
					set[a.String()] = true
				}
			}
		}
	}
	c.out.sets[name], c.out.comments[name] = set, what
	return name
}

func (c *compiler) inScope(p *policy, selected peer, namespace string) bool {
	if selected.namespaces == nil {
		return namespace == p.namespace
	}
	// The namespace of a known pod may not be known yet. Then no selector admits the pod.
	found, ok := c.namespaces[namespace]
	return ok && selected.namespaces.Matches(found)
}

// selects reports whether a rule matches the pods of a namespace with these labels.
func (c *compiler) selects(p *policy, a admission, namespace string, l labels.Set) bool {
	return slices.ContainsFunc(a.peers, func(selected peer) bool {
		return c.inScope(p, selected, namespace) && selected.pods.Matches(l)
	})
}

// portSet returns the set of all pods that have a port of the name, with its number, which may
// differ from pod to pod. Rules that name the same port share the set.
func (c *compiler) portSet(p port) string {
	name := "port-" + p.protocol + "-" + p.name
	if _, ok := c.out.sets[name]; ok {
		return name
	}
	set := make(map[string]bool)
	for _, candidate := range c.pods {
		for _, np := range candidate.ports {
			if np.name == p.name && np.protocol == p.protocol {
				for _, a := range candidate.addresses {
					set[a.String()+" . "+span[int32]{np.port, np.port}.String()] = true
				}
			}
		}
	}
	c.out.sets[name], c.out.portSets[name] = set, true
	return name
}
