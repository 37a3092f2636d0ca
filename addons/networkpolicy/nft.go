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

// table is ours alone, in the family inet. It stays when mote ends, and pods stay guarded.
const table = "mote-networkpolicy"

// staleAfter is for kernels before 6.2, which notice only a little later that a chain is not used any more and can
// be removed.
const staleAfter = time.Second

// afterKubeProxy is the priority of the base chains. kube-proxy's refuse what is sent to a Service without endpoints, whose
// address is routed to the bridge: to us it is that of a pod that is not known. Of equal ones the younger table is first.
const afterKubeProxy = knftables.FilterPriority + "+10"

// The maps and the set of the base chains.
const (
	mapEgress  = "egress"
	mapIngress = "ingress"
	setSelf    = "self"
)

// nftables keeps the table. It is used by one goroutine, and suspect by another.
type nftables struct {
	nft knftables.Interface
	// suspect says that the table may be gone, see loss.go.
	suspect atomic.Bool
	// written is what the table holds; nil is not known, and the next write replaces all.
	written *nftTable
	// stale are chains that are empty, unused, and to be removed, with the moment they became so.
	stale map[string]time.Time
}

func openNFTables() (*nftables, error) {
	nft, err := knftables.New(knftables.InetFamily, table)
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &nftables{nft: nft, stale: make(map[string]time.Time)}, nil
}

// present says whether a former life's table is there.
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

// remove takes the table away, if it is there.
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

// write brings the table from what it holds to want, in one transaction: packets meet the old or the new rules.
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

// removeStale does not wait for stale chains: those that are too young stay until the next change.
func (n *nftables) removeStale(ctx context.Context) {
	tx := n.nft.NewTransaction()
	for chain, since := range n.stale {
		if time.Since(since) > staleAfter {
			tx.Delete(&knftables.Chain{Name: chain})
			delete(n.stale, chain)
		}
	}
	if tx.NumOperations() > 0 && n.nft.Run(ctx, tx) != nil {
		n.written = nil // what is there now is not known; the table is replaced
	}
}

// nftTable is a ruleset in nft's words.
type nftTable struct {
	sets   map[string]nftSet
	chains map[string]nftChain
}

type nftSet struct {
	keyType, comment string
	verdicts         bool // a map of verdicts
	elements         map[string]string
}

type nftChain struct {
	hook  knftables.BaseChainHook // "" for a chain that others lead to
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

// addBase adds what every packet meets. What passes is not judged by policies; other tables may still drop it.
func (t *nftTable) addBase(r *ruleset) {
	bridge := `"` + r.bridge + `"`
	// Answers pass. What a client sends is judged for as long as its connection lasts, so a policy that
	// forbids a connection also ends it.
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
		// Without neighbour discovery not even the permitted gets anywhere.
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

// nft is the rule as nft reads it.
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

// become adds to tx what makes next of t, and returns the chains that are only emptied.
func (t *nftTable) become(tx *knftables.Transaction, next *nftTable) (stale []string) {
	// What is referred to comes before what refers to it, and goes after it.
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

// leave removes what next does not have.
func (t *nftTable) leave(tx *knftables.Transaction, next *nftTable) (stale []string) {
	var hooks []string
	for name, chain := range t.chains {
		if _, ok := next.chains[name]; ok {
			continue
		}
		tx.Flush(&knftables.Chain{Name: name})
		if chain.hook != "" {
			hooks = append(hooks, name) // nothing leads there
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
		// 128 characters are the most, and quotes end it.
		set.Comment = knftables.PtrTo(strings.ReplaceAll(s.comment[:min(len(s.comment), 120)], `"`, "'"))
	}
	return set
}

// replace makes the elements those of s, which were those of old.
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
