package networkpolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where nftables does not work, ipsets replace its sets and iptables chains its chains. The chains
// are in table mangle: that table sees translated addresses, and the table filter still checks the
// packets that it accepts. All names have these prefixes.
const (
	iptTable    = "mangle"
	iptPrefix   = "MOTE-NP-"
	ipsetPrefix = "mote-"
)

// These sets replace nftables' maps: the known pods, and the pods that are isolated in a direction.
// In addition, each chain that checks isolated pods has a set of the pods that use it.
const (
	setKnown   = "known"
	setEgress  = "egress"
	setIngress = "ingress"
	setSwap    = "swap" // takes new elements before it is swapped with a set that is in use
)

// ipTables keeps chains and ipsets. Unlike nftables' table they change one after the other. Sets
// are filled before chains refer to them, and a packet in between is dropped, not passed. One
// goroutine uses it.
type ipTables struct {
	judge  *ipChains // of the pod network's family
	others *ipChains // of the other family, which no pod has; nil if the kernel does not support it
	sets   *netlink.Handle
	family int // of addresses in sets
	filled map[string]map[string]bool
	known  bool // filled is the state of the kernel
}

// openIPTables opens the chains that check packets of f, and those that drop packets of the other
// family.
func openIPTables(f family) (*ipTables, error) {
	t := &ipTables{family: unix.AF_INET, filled: make(map[string]map[string]bool)}
	other := family{key: "ip6"}
	if f.key == "ip6" {
		t.family, other.key = unix.AF_INET6, "ip"
	}
	var err error
	if t.judge, err = openChains(f); err != nil {
		return nil, err
	}
	if other.spoken() {
		if t.others, err = openChains(other); err != nil {
			return nil, err
		}
	}
	t.sets, err = openSets()
	return t, err
}

func openSets() (*netlink.Handle, error) {
	sets, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open ipset: %w", err)
	}
	if _, err := sets.IpsetListAll(); err != nil {
		sets.Close()
		return nil, fmt.Errorf("ipset does not work here: %w", err)
	}
	return sets, nil
}

func (t *ipTables) present(context.Context) (bool, error) {
	return t.judge.leads()
}

func (t *ipTables) remove(ctx context.Context) error { return t.write(ctx, &ruleset{}) }

func (t *ipTables) write(ctx context.Context, want *ruleset) error {
	if !t.known {
		t.filled = make(map[string]map[string]bool)
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
	if err := removeSets(t.sets, sets); err != nil {
		return err
	}
	maps.DeleteFunc(t.filled, func(name string, _ map[string]bool) bool { _, ok := sets[name]; return !ok })
	t.known = true
	return nil
}

// ipsets returns the ruleset's sets, and the sets that replace its maps.
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

// fill replaces all elements of a set at once.
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
	_ = t.sets.IpsetDestroy(ipsetPrefix + setSwap) // left by a write that was interrupted
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

// ipsetEntry returns an element of a set of addresses, or of "port-PROTOCOL-NAME" with ports.
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

// removeSets removes mote's sets that are not wanted any more. No rule may refer to them.
func removeSets(sets *netlink.Handle, wanted map[string]map[string]bool) error {
	present, err := sets.IpsetListAll()
	if err != nil {
		return fmt.Errorf("list ipsets: %w", err)
	}
	for _, set := range present {
		name, ours := strings.CutPrefix(set.SetName, ipsetPrefix)
		if _, ok := wanted[name]; ok || !ours {
			continue
		}
		if err := sets.IpsetDestroy(set.SetName); err != nil {
			return fmt.Errorf("remove ipset %s: %w", set.SetName, err)
		}
	}
	return nil
}

// writeChains writes the chains of both families, or removes them. An error in one family does not
// stop the other.
func (t *ipTables) writeChains(ctx context.Context, want *ruleset) error {
	var errs []error
	for _, family := range []struct {
		table  *ipChains
		chains func(*ruleset) map[string][]string
	}{{t.others, droppingChains}, {t.judge, chainsOf}} {
		switch {
		case family.table == nil:
		case want.enforcing:
			errs = append(errs, family.table.write(ctx, family.chains(want), hooks(want.bridge)))
		default:
			errs = append(errs, family.table.remove(ctx))
		}
	}
	return errors.Join(errs...)
}
