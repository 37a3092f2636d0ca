package agent

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"
)

const (
	kubeProxyTable = "kube-proxy"   // the nftables table of kube-proxy
	portmapTable   = "cni_hostport" // the table of the CNI plugin portmap, shared with other users of the plugin
	portmapChain   = "hostports"
	// The addon networkpolicy writes this table in nftables, or ipsets beside the iptables chains
	// MOTE-NP-*.
	policyTable     = "mote-networkpolicy"
	policySetPrefix = "mote-"
)

// removeRules removes the kinds of rules that the footprint names: mote's, kube-proxy's, and those
// of the host ports if no other program has one. It also removes the rules of NetworkPolicies. All
// other rules stay.
func removeRules(ctx context.Context, f footprint) error {
	var errs []error
	// This table is written wherever nft works, whatever kube-proxy uses.
	if nftablesUsable() == nil {
		errs = append(errs, deleteNFTable(ctx, knftables.InetFamily, policyTable))
	}
	for _, kind := range f.Rules {
		switch kind {
		case ProxyNFTables:
			errs = append(errs, removeNFTables(ctx))
		case ProxyIPTables:
			errs = append(errs, removeIPTables("MOTE-", "KUBE-"), removePolicySets(), removeIdlePortmap())
		case rulesForward:
			errs = append(errs, removeIPTables("MOTE-"))
		}
	}
	return errors.Join(errs...)
}

func removeNFTables(ctx context.Context) error {
	if _, err := exec.LookPath("nft"); err != nil {
		return fmt.Errorf("cannot remove packet rules: the program nft is missing")
	}
	errs := []error{
		deleteNFTable(ctx, knftables.IPv4Family, nftTable),
		deleteNFTable(ctx, knftables.IPv4Family, kubeProxyTable),
		deleteNFTable(ctx, knftables.IPv6Family, kubeProxyTable),
	}
	for _, family := range []knftables.Family{knftables.IPv4Family, knftables.IPv6Family} {
		nft, err := knftables.New(family, portmapTable)
		if err != nil {
			errs = append(errs, fmt.Errorf("open nftables: %w", err))
			continue
		}
		rules, err := nft.ListRules(ctx, portmapChain)
		if err == nil && len(rules) == 0 {
			errs = append(errs, deleteNFTable(ctx, family, portmapTable))
		}
	}
	return errors.Join(errs...)
}

func deleteNFTable(ctx context.Context, family knftables.Family, table string) error {
	nft, err := knftables.New(family, table)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tx := nft.NewTransaction()
	// Adding the table first makes the deletion of a missing table succeed.
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("remove nftables table %s %s: %w", family, table, err)
	}
	return nil
}

// removeIPTables removes every chain whose name starts with one of prefixes, and every rule that
// jumps to such a chain.
func removeIPTables(prefixes ...string) error {
	var errs []error
	for _, protocol := range []iptables.Protocol{iptables.ProtocolIPv4, iptables.ProtocolIPv6} {
		ipt, err := iptables.NewWithProtocol(protocol)
		if err != nil {
			if protocol == iptables.ProtocolIPv4 {
				errs = append(errs, fmt.Errorf("open iptables: %w", err))
			}
			continue // no ip6tables: no rules were written with it
		}
		for _, table := range []string{"nat", "filter", "mangle"} {
			if err := removeChains(ipt, table, prefixes); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func removeChains(ipt *iptables.IPTables, table string, prefixes []string) error {
	chains, err := ipt.ListChains(table)
	if err != nil {
		return nil // the kernel does not have this table
	}
	var ours []string
	for _, chain := range chains {
		if hasPrefix(chain, prefixes) {
			ours = append(ours, chain)
		}
	}
	if len(ours) == 0 {
		return nil
	}
	for _, chain := range chains {
		if !hasPrefix(chain, prefixes) {
			if err := removeJumps(ipt, table, chain, prefixes); err != nil {
				return err
			}
		}
	}
	// All chains are emptied first, because they jump to each other.
	for _, chain := range ours {
		if err := ipt.ClearChain(table, chain); err != nil {
			return fmt.Errorf("empty iptables chain %s: %w", chain, err)
		}
	}
	for _, chain := range ours {
		if err := ipt.DeleteChain(table, chain); err != nil {
			return fmt.Errorf("remove iptables chain %s: %w", chain, err)
		}
	}
	return nil
}

// removeJumps deletes rules by position. It starts at the end, so that the other positions stay
// valid.
func removeJumps(ipt *iptables.IPTables, table, chain string, prefixes []string) error {
	rules, err := ipt.List(table, chain)
	if err != nil {
		return fmt.Errorf("list iptables chain %s: %w", chain, err)
	}
	// The first line of a built-in chain is its policy, and of another chain its creation. Neither
	// counts.
	for position := len(rules) - 1; position >= 1; position-- {
		fields := strings.Fields(rules[position])
		target := slices.Index(fields, "-j") + 1
		if target == 0 || target >= len(fields) || !hasPrefix(fields[target], prefixes) {
			continue
		}
		if err := ipt.DeleteById(table, chain, position); err != nil {
			return fmt.Errorf("remove rule %d of iptables chain %s: %w", position, chain, err)
		}
	}
	return nil
}

// removePolicySets removes the ipsets of NetworkPolicies. The chains that use them must be removed
// before.
func removePolicySets() error {
	sets, err := netlink.IpsetListAll()
	if err != nil {
		return nil // the kernel has no ipsets
	}
	for _, set := range sets {
		if !strings.HasPrefix(set.SetName, policySetPrefix) {
			continue
		}
		if err := netlink.IpsetDestroy(set.SetName); err != nil {
			return fmt.Errorf("remove ipset %s: %w", set.SetName, err)
		}
	}
	return nil
}

// removeIdlePortmap removes the chains of the CNI plugin portmap if no host port is left.
func removeIdlePortmap() error {
	ipt, err := iptables.New()
	if err != nil {
		return fmt.Errorf("open iptables: %w", err)
	}
	rules, err := ipt.List("nat", "CNI-HOSTPORT-DNAT")
	if err != nil || len(rules) > 1 {
		return nil
	}
	return removeIPTables("CNI-HOSTPORT-")
}

func hasPrefix(name string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
