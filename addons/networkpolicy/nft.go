package networkpolicy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/mote-k8s/mote/addons/api"
)

// table belongs to mote alone, in the family inet. It stays when mote ends, so pods stay protected.
const table = "mote-networkpolicy"

// staleAfter is the wait before a chain is removed. Kernels before 6.2 notice with a short delay
// that a chain is not used any more and can be removed.
const staleAfter = time.Second

// afterKubeProxy is the priority of the base chains. kube-proxy's chains refuse packets to a
// Service without endpoints. The address of such a Service is routed to the bridge, so mote's
// chains would treat it as an unknown pod. Of two chains with equal priority, the one of the
// younger table runs first.
const afterKubeProxy = knftables.FilterPriority + "+10"

// These are the maps and the set of the base chains.
const (
	mapEgress  = "egress"
	mapIngress = "ingress"
	setSelf    = "self"
)

// nftables keeps the table. One goroutine uses it; another one uses suspect.
type nftables struct {
	nft knftables.Interface
	// suspect is true if the table may be gone, see loss.go.
	suspect atomic.Bool
	// written is the content of the table. nil means that it is not known, and the next write
	// replaces everything.
	written *nftTable
	// stale holds chains that are empty and unused and have to be removed, with the time when they
	// became so.
	stale map[string]time.Time
}

func openNFTables() (*nftables, error) {
	nft, err := knftables.New(knftables.InetFamily, table)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &nftables{nft: nft, stale: make(map[string]time.Time)}, nil
}

// present reports whether a table of a previous run exists.
func (n *nftables) present(ctx context.Context) (bool, error) {
	tx := n.nft.NewTransaction()
	tx.Delete(&knftables.Table{})
	err := n.nft.Check(ctx, tx)
	if knftables.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for nftables table %s: %w", table, err)
	}
	return true, nil
}

// remove deletes the table if it exists.
func (n *nftables) remove(ctx context.Context) error {
	tx := n.nft.NewTransaction()
	tx.Add(&knftables.Table{}) // makes the deletion of a missing table succeed
	tx.Delete(&knftables.Table{})
	n.written = nil
	if err := n.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", table, err)
	}
	return nil
}

// write changes the table from its content to want in one transaction. So a packet meets either the
// old or the new rules.
func (n *nftables) write(ctx context.Context, want *ruleset) error {
	next := render(want)
	if n.suspect.Swap(false) && n.written != nil {
		present, err := n.present(ctx)
		if err != nil || !present {
			n.written = nil
		}
		if err == nil && !present {
			slog.Warn("somebody has removed the rules; they are written again", "component", Name, "table", table)
		}
	}
	if n.written != nil {
		n.removeStale(ctx)
	}
	if n.written == nil {
		tx := n.nft.NewTransaction()
		tx.Add(&knftables.Table{})
		tx.Delete(&knftables.Table{})
		tx.Add(&knftables.Table{Comment: knftables.PtrTo("NetworkPolicies, by mote")})
		clear(n.stale)
		(&nftTable{}).become(tx, next)
		return n.run(ctx, tx, next)
	}
	tx := n.nft.NewTransaction()
	for _, chain := range n.written.become(tx, next) {
		n.stale[chain] = time.Now()
	}
	for chain := range next.chains {
		delete(n.stale, chain)
	}
	if tx.NumOperations() == 0 {
		return nil
	}
	return n.run(ctx, tx, next)
}

func (n *nftables) run(ctx context.Context, tx *knftables.Transaction, next *nftTable) error {
	if err := n.nft.Run(ctx, tx); err != nil {
		n.written = nil
		return fmt.Errorf("write nftables table %s: %w", table, err)
	}
	n.written = next
	return nil
}

// removeStale removes stale chains without a wait. Chains that are too young stay until the next
// change.
func (n *nftables) removeStale(ctx context.Context) {
	tx := n.nft.NewTransaction()
	for chain, since := range n.stale {
		if time.Since(since) > staleAfter {
			tx.Delete(&knftables.Chain{Name: chain})
			delete(n.stale, chain)
		}
	}
	if tx.NumOperations() > 0 && n.nft.Run(ctx, tx) != nil {
		// The content of the table is unknown now; the next write replaces it.
		n.written = nil
	}
}

// nftTable is a ruleset in the syntax of nft.
type nftTable struct {
	sets   map[string]nftSet
	chains map[string]nftChain
}

type nftSet struct {
	keyType, comment string
	verdicts         bool // it is a map of verdicts
	elements         map[string]string
}

type nftChain struct {
	hook  knftables.BaseChainHook // "" for a chain that other chains lead to
	rules []string
}

func render(r *ruleset) *nftTable {
	t := &nftTable{sets: make(map[string]nftSet), chains: make(map[string]nftChain)}
	if !r.enforcing {
		return t
	}
	t.addBase(r)
	for name, members := range r.sets {
		set := nftSet{keyType: r.family.addr, comment: r.comments[name], elements: make(map[string]string)}
		if r.portSets[name] {
			set.keyType += " . inet_service"
		}
		for member := range members {
			set.elements[member] = ""
		}
		t.sets[name] = set
	}
	for name, rules := range r.chains {
		var lines []string
		for _, rule := range rules {
			lines = append(lines, rule.nft(r.family))
		}
		t.chains[name] = nftChain{rules: lines}
	}
	return t
}

// addBase adds the rules that every packet meets. Policies do not check the packets that pass here;
// other tables may still drop them.
func (t *nftTable) addBase(r *ruleset) {
	bridge := `"` + r.bridge + `"`
	// Answers pass. A client's packets are checked for as long as its connection lasts, so a policy
	// that forbids a connection also ends it.
	answers := []string{"ct direction reply accept", "ct state related accept"}
	t.chains["forward"] = nftChain{knftables.ForwardHook, append([]string{
		"iifname " + bridge + " goto " + chainFrom,
		"oifname != " + bridge + " accept",
	}, append(answers, "goto "+chainTo)...)}
	// The node is a peer like any other: its address may be in a block.
	t.chains["input"] = nftChain{knftables.InputHook, []string{"iifname " + bridge + " goto " + chainFrom}}
	t.chains["output"] = nftChain{knftables.OutputHook, []string{
		fmt.Sprintf("oifname %s meta mark & %#x == %#x ct direction original goto %s", bridge, api.IngressMark, api.IngressMark, chainTo),
	}}
	from := answers
	if r.family.key == "ip6" {
		// Without neighbour discovery even permitted packets cannot be sent.
		from = append(from, "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept")
	}
	t.chains[chainFrom] = nftChain{rules: append(slices.Clone(from),
		fmt.Sprintf("%[1]s saddr . %[1]s daddr @%[2]s accept", r.family.key, setSelf),
		fmt.Sprintf("%s saddr vmap @%s", r.family.key, mapEgress),
		drop,
	)}
	t.chains[chainTo] = nftChain{rules: []string{
		fmt.Sprintf("%s daddr vmap @%s", r.family.key, mapIngress),
		"oifname " + bridge + " drop",
		accept,
	}}
	self := nftSet{keyType: r.family.addr + " . " + r.family.addr, elements: make(map[string]string)}
	for pair := range r.self {
		self.elements[pair] = ""
	}
	t.sets[setSelf] = self
	for name, verdicts := range map[string]map[string]string{mapEgress: r.egress, mapIngress: r.ingress} {
		m := nftSet{keyType: r.family.addr, verdicts: true, elements: make(map[string]string)}
		for address, target := range verdicts {
			if m.elements[address] = target; target != accept {
				m.elements[address] = "goto " + target
			}
		}
		t.sets[name] = m
	}
}

// nft returns the rule in the syntax of nft.
func (r rule) nft(f family) string {
	var words []string
	switch {
	case r.marked:
		words = append(words, fmt.Sprintf("meta mark & %#x == %#x", api.IngressMark, api.IngressMark))
	case r.exact.IsValid():
		words = append(words, f.key, r.field, r.exact.String())
	case r.peers != "":
		words = append(words, f.key, r.field, "@"+r.peers)
	case len(r.spans) > 0:
		words = append(words, f.key, r.field, list(r.spans))
	}
	switch {
	case r.portSet != "":
		words = append(words, f.key+" daddr .", r.protocol, "dport @"+r.portSet)
	case len(r.ports) > 0:
		words = append(words, r.protocol, "dport", list(r.ports))
	case r.protocol != "":
		words = append(words, "meta l4proto", r.protocol)
	}
	switch {
	case r.target == accept || r.target == drop:
		words = append(words, r.target)
	case r.jump:
		words = append(words, "jump", r.target)
	default:
		words = append(words, "goto", r.target)
	}
	return strings.Join(words, " ")
}

func list[T comparable](spans []span[T]) string {
	var items []string
	for _, s := range spans {
		items = append(items, s.String())
	}
	return "{ " + strings.Join(items, ", ") + " }"
}

// become adds to tx the operations that change t to next. It returns the chains that are only
// emptied.
func (t *nftTable) become(tx *knftables.Transaction, next *nftTable) (stale []string) {
	// Objects are created before the objects that refer to them, and removed after those.
	chains, sets := slices.Sorted(maps.Keys(next.chains)), slices.Sorted(maps.Keys(next.sets))
	for _, name := range chains {
		if _, ok := t.chains[name]; !ok {
			tx.Add(next.chains[name].object(name))
		}
	}
	for _, name := range sets {
		set := next.sets[name]
		if _, ok := t.sets[name]; !ok {
			tx.Add(set.object(name))
		}
		if !set.verdicts {
			set.replace(tx, name, t.sets[name])
		}
	}
	for _, name := range chains {
		chain := next.chains[name]
		old, ok := t.chains[name]
		if ok && slices.Equal(old.rules, chain.rules) {
			continue
		}
		tx.Flush(&knftables.Chain{Name: name})
		for _, line := range chain.rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: line})
		}
	}
	for _, name := range sets {
		if set := next.sets[name]; set.verdicts {
			set.replace(tx, name, t.sets[name])
		}
	}
	return t.leave(tx, next)
}

// leave removes the objects that next does not have.
func (t *nftTable) leave(tx *knftables.Transaction, next *nftTable) (stale []string) {
	var hooks []string
	for name, chain := range t.chains {
		if _, ok := next.chains[name]; ok {
			continue
		}
		tx.Flush(&knftables.Chain{Name: name})
		if chain.hook != "" {
			hooks = append(hooks, name) // no chain leads to it
		} else {
			stale = append(stale, name)
		}
	}
	for _, name := range hooks {
		tx.Delete(&knftables.Chain{Name: name})
	}
	for name, set := range t.sets {
		if _, ok := next.sets[name]; !ok {
			tx.Delete(set.object(name))
		}
	}
	return stale
}

func (c nftChain) object(name string) *knftables.Chain {
	if c.hook == "" {
		return &knftables.Chain{Name: name}
	}
	return &knftables.Chain{
		Name: name, Type: knftables.PtrTo(knftables.FilterType), Hook: knftables.PtrTo(c.hook),
		Priority: knftables.PtrTo(afterKubeProxy),
	}
}

func (s nftSet) object(name string) knftables.Object {
	if s.verdicts {
		return &knftables.Map{Name: name, Type: s.keyType + " : verdict"}
	}
	set := &knftables.Set{Name: name, Type: s.keyType}
	if s.comment != "" {
		// A comment has at most 128 characters, and a quote ends it.
		set.Comment = knftables.PtrTo(strings.ReplaceAll(s.comment[:min(len(s.comment), 120)], `"`, "'"))
	}
	return set
}

// replace changes the elements from those of old to those of s.
func (s nftSet) replace(tx *knftables.Transaction, name string, old nftSet) {
	element := func(key, value string) *knftables.Element {
		e := &knftables.Element{Set: name, Key: strings.Split(key, " . ")}
		if s.verdicts {
			e.Set, e.Map, e.Value = "", name, []string{value}
		}
		return e
	}
	for key, value := range old.elements {
		if now, ok := s.elements[key]; !ok || now != value {
			tx.Delete(element(key, value))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.elements)) {
		if was, ok := old.elements[key]; !ok || was != s.elements[key] {
			tx.Add(element(key, s.elements[key]))
		}
	}
}
