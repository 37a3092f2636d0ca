package networkpolicy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/addons/api"
)

// Where nftables does not work, sets are ipsets and chains are iptables', in table mangle: it sees translated
// addresses, and what it accepts the table filter still judges. All have these prefixes.
const (
	iptTable    = "mangle"
	iptPrefix   = "MOTE-NP-"
	ipsetPrefix = "mote-"
)

// Sets that replace nftables' maps: pods that are known, and those that are isolated in a direction. Which chain
// judges an isolated pod is told by one set for each such chain.
const (
	setKnown   = "known"
	setEgress  = "egress"
	setIngress = "ingress"
	setSwap    = "swap" // takes new elements before it changes places with a set that is in use
)

// ipTables keeps chains and ipsets. Other than nftables' table they change one after the other: sets are filled
// before chains name them, and a packet that falls between is dropped, not passed. It is used by one goroutine.
type ipTables struct {
	ipt     *iptables.IPTables
	restore string // the program that takes many rules at once
	sets    *netlink.Handle
	family  int // of addresses in sets

	// known is false until what former lives left is removed or replaced.
	known  bool
	chains []string // that are there
	text   string   // of all rules
	filled map[string]map[string]bool
}

func openIPTables(f family) (*ipTables, error) {
	t := &ipTables{restore: "iptables-restore", family: unix.AF_INET, filled: make(map[string]map[string]bool)}
	protocol := iptables.ProtocolIPv4
	if f.key == "ip6" {
		protocol, t.restore, t.family = iptables.ProtocolIPv6, "ip6tables-restore", unix.AF_INET6
	}
	var err error
	if t.ipt, err = iptables.NewWithProtocol(protocol); err != nil {
		return nil, fmt.Errorf("open iptables: %w", err)
	}
	if _, err := exec.LookPath(t.restore); err != nil {
		return nil, fmt.Errorf("the program %s is missing", t.restore)
	}
	if t.sets, err = netlink.NewHandle(unix.NETLINK_NETFILTER); err != nil {
		return nil, fmt.Errorf("open ipset: %w", err)
	}
	if _, err := t.sets.IpsetListAll(); err != nil {
		return nil, fmt.Errorf("ipset does not work here: %w", err)
	}
	return t, nil
}

func (t *ipTables) present(context.Context) (bool, error) {
	chains, err := t.ours()
	return len(chains) > 0, err
}

func (t *ipTables) ours() ([]string, error) {
	chains, err := t.ipt.ListChains(iptTable)
	if err != nil {
		return nil, fmt.Errorf("list iptables chains: %w", err)
	}
	return slices.DeleteFunc(chains, func(c string) bool { return !strings.HasPrefix(c, iptPrefix) }), nil
}

func (t *ipTables) remove(ctx context.Context) error { return t.write(ctx, &ruleset{}) }

func (t *ipTables) write(ctx context.Context, want *ruleset) error {
	if !t.known {
		var err error
		if t.chains, err = t.ours(); err != nil {
			return err
		}
		t.text, t.filled = "", make(map[string]map[string]bool)
	}
	t.known = false
	sets := ipsets(want)
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		if err := t.fill(name, sets[name], want.portSets[name]); err != nil {
			return err
		}
	}
	if err := t.writeChains(ctx, want); err != nil {
		return err
	}
	if err := t.removeSets(sets); err != nil {
		return err
	}
	t.known = true
	return nil
}

// ipsets are the ruleset's sets, and those that stand for its maps.
func ipsets(r *ruleset) map[string]map[string]bool {
	if !r.enforcing {
		return nil
	}
	sets := maps.Clone(r.sets)
	for _, name := range []string{setKnown, setEgress, setIngress} {
		sets[name] = make(map[string]bool)
	}
	sort := func(verdicts map[string]string, free, isolated string) {
		for address, target := range verdicts {
			sets[setKnown][address] = true
			if target == free {
				continue
			}
			sets[isolated][address] = true
			if sets[target] == nil {
				sets[target] = make(map[string]bool)
			}
			sets[target][address] = true
		}
	}
	sort(r.egress, chainTo, setEgress)
	sort(r.ingress, accept, setIngress)
	return sets
}

// fill gives a set its elements at once.
func (t *ipTables) fill(name string, elements map[string]bool, ports bool) error {
	if old, ok := t.filled[name]; ok && maps.Equal(old, elements) {
		return nil
	}
	kind := "hash:ip"
	if ports {
		kind = "hash:ip,port"
	}
	create := func(name string) error {
		err := t.sets.IpsetCreate(ipsetPrefix+name, kind, netlink.IpsetCreateOptions{Family: uint8(t.family), MaxElements: 1 << 20})
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make ipset %s%s: %w", ipsetPrefix, name, err)
		}
		return nil
	}
	_ = t.sets.IpsetDestroy(ipsetPrefix + setSwap) // of a write that was cut short
	if err := errors.Join(create(name), create(setSwap)); err != nil {
		return err
	}
	for element := range elements {
		entry, err := ipsetEntry(name, element)
		if err != nil {
			return err
		}
		if err := t.sets.IpsetAdd(ipsetPrefix+setSwap, entry); err != nil {
			return fmt.Errorf("add %s to ipset %s%s: %w", element, ipsetPrefix, name, err)
		}
	}
	if err := t.sets.IpsetSwap(ipsetPrefix+setSwap, ipsetPrefix+name); err != nil {
		return fmt.Errorf("replace ipset %s%s: %w", ipsetPrefix, name, err)
	}
	if err := t.sets.IpsetDestroy(ipsetPrefix + setSwap); err != nil {
		return fmt.Errorf("remove ipset %s%s: %w", ipsetPrefix, setSwap, err)
	}
	t.filled[name] = maps.Clone(elements)
	return nil
}

// ipsetEntry is an element of a set of addresses, or of "port-PROTOCOL-NAME" with ports.
func ipsetEntry(set, element string) (*netlink.IPSetEntry, error) {
	text, number, withPort := strings.Cut(element, " . ")
	address, err := netip.ParseAddr(text)
	if err != nil {
		return nil, fmt.Errorf("element of ipset %s: %w", set, err)
	}
	entry := &netlink.IPSetEntry{IP: net.IP(address.AsSlice()), Replace: true}
	if !withPort {
		return entry, nil
	}
	parsed, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("element of ipset %s: %w", set, err)
	}
	port, protocol := uint16(parsed), uint8(unix.IPPROTO_TCP)
	switch {
	case strings.HasPrefix(set, "port-udp-"):
		protocol = unix.IPPROTO_UDP
	case strings.HasPrefix(set, "port-sctp-"):
		protocol = unix.IPPROTO_SCTP
	}
	entry.Port, entry.Protocol = &port, &protocol
	return entry, nil
}

// removeSets removes those of our sets that are not wanted any more.
func (t *ipTables) removeSets(wanted map[string]map[string]bool) error {
	present, err := t.sets.IpsetListAll()
	if err != nil {
		return fmt.Errorf("list ipsets: %w", err)
	}
	for _, set := range present {
		name, ours := strings.CutPrefix(set.SetName, ipsetPrefix)
		if _, ok := wanted[name]; ok || !ours {
			continue
		}
		if err := t.sets.IpsetDestroy(set.SetName); err != nil {
			return fmt.Errorf("remove ipset %s: %w", set.SetName, err)
		}
		delete(t.filled, name)
	}
	return nil
}

// chainName is at most 28 characters long.
func chainName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return iptPrefix + hex.EncodeToString(sum[:8])
}

// hook is a rule of a built-in chain that leads to ours. It comes last there, as what we accept skips the rest.
type hook struct {
	chain string
	rule  []string
}

func hooks(bridge string) []hook {
	mark := fmt.Sprintf("%#x/%#x", api.IngressMark, api.IngressMark)
	return []hook{
		{"FORWARD", []string{"-j", chainName("forward")}},
		{"INPUT", []string{"-i", bridge, "-j", chainName(chainFrom)}},
		// Not OUTPUT, where Services' addresses are not translated yet.
		{"POSTROUTING", []string{"-o", bridge, "-m", "mark", "--mark", mark, "-m", "conntrack", "--ctdir", "ORIGINAL", "-j", chainName(chainTo)}},
	}
}

// writeChains writes all chains in one go, if one of them changed, and then leads packets there.
func (t *ipTables) writeChains(ctx context.Context, want *ruleset) error {
	if !want.enforcing {
		return t.removeChains()
	}
	chains := chainsOf(want)
	names := slices.Sorted(maps.Keys(chains))
	var text strings.Builder
	text.WriteString("*" + iptTable + "\n")
	for _, name := range names {
		fmt.Fprintf(&text, ":%s - [0:0]\n", name) // made, or emptied
	}
	for _, name := range names {
		for _, line := range chains[name] {
			fmt.Fprintf(&text, "-A %s %s\n", name, line)
		}
	}
	// Only what is there now can be removed, so these lines do not count as a change.
	stale := slices.DeleteFunc(slices.Clone(t.chains), func(c string) bool { _, ok := chains[c]; return ok })
	if text.String() != t.text || len(stale) > 0 {
		t.text = text.String()
		for _, name := range stale {
			fmt.Fprintf(&text, ":%s - [0:0]\n", name)
		}
		for _, name := range stale {
			fmt.Fprintf(&text, "-X %s\n", name)
		}
		text.WriteString("COMMIT\n")
		cmd := exec.CommandContext(ctx, t.restore, "--noflush", "--wait")
		cmd.Stdin = strings.NewReader(text.String())
		if printed, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("write iptables rules: %w: %s", err, bytes.TrimSpace(printed))
		}
		t.chains = names
	}
	if t.known {
		return nil
	}
	for _, h := range hooks(want.bridge) {
		if err := t.ipt.AppendUnique(iptTable, h.chain, h.rule...); err != nil {
			return fmt.Errorf("write iptables chain %s: %w", h.chain, err)
		}
	}
	return nil
}

// removeChains deletes what leads to our chains, and them.
func (t *ipTables) removeChains() error {
	if len(t.chains) == 0 {
		return nil
	}
	for _, chain := range []string{"FORWARD", "INPUT", "POSTROUTING"} {
		rules, err := t.ipt.List(iptTable, chain)
		if err != nil {
			return fmt.Errorf("list iptables chain %s: %w", chain, err)
		}
		for _, rule := range slices.Backward(rules) {
			words := strings.Fields(rule)
			if len(words) < 2 || !strings.HasPrefix(words[len(words)-1], iptPrefix) {
				continue
			}
			if err := t.ipt.Delete(iptTable, chain, words[2:]...); err != nil {
				return fmt.Errorf("remove a rule of iptables chain %s: %w", chain, err)
			}
		}
	}
	for _, do := range []func(table, chain string) error{t.ipt.ClearChain, t.ipt.DeleteChain} {
		for _, chain := range t.chains {
			if err := do(iptTable, chain); err != nil {
				return fmt.Errorf("remove iptables chain %s: %w", chain, err)
			}
		}
	}
	t.chains, t.text = nil, ""
	return nil
}
