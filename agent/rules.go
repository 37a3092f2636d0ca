package agent

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"sigs.k8s.io/knftables"
)

// mote's own packet rules carry its name: one nftables table, or iptables chains. Both can be
// removed whole.
const (
	nftTable        = "mote"
	nftChain        = "postrouting"
	chainMasquerade = "MOTE-POSTROUTING"
	chainForward    = "MOTE-FORWARD"
	ruleComment     = "mote pod network"
)

// rulesForward in a footprint means that acceptForwarded wrote iptables rules in addition to those
// of the chosen mode.
const rulesForward = "iptables-forward"

func writeRules(ctx context.Context, c Config, mode string) error {
	if mode == ProxyNFTables {
		if err := writeNFTables(ctx, c); err != nil {
			return err
		}
	} else if err := writeIPTables(c); err != nil {
		return err
	}
	return acceptForwarded(c)
}

func writeNFTables(ctx context.Context, c Config) error {
	nft, err := knftables.New(knftables.IPv4Family, nftTable)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo(ruleComment)})
	tx.Add(&knftables.Chain{
		Name:     nftChain,
		Type:     knftables.PtrTo(knftables.NATType),
		Hook:     knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: nftChain})
	tx.Add(&knftables.Rule{Chain: nftChain, Comment: knftables.PtrTo(ruleComment), Rule: knftables.Concat(
		"ip saddr", c.PodCIDR.Masked().String(), "ip daddr != {", c.ClusterCIDR.Masked().String(), ", 224.0.0.0/4 }",
		"masquerade fully-random",
	)})
	if err := nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table %s: %w", nftTable, err)
	}
	return nil
}

func writeIPTables(c Config) error {
	ipt, err := iptables.New()
	if err != nil {
		return fmt.Errorf("open iptables: %w", err)
	}
	const table = "nat"
	if err := ipt.ClearChain(table, chainMasquerade); err != nil {
		return fmt.Errorf("make iptables chain %s: %w", chainMasquerade, err)
	}
	for _, destination := range []string{c.ClusterCIDR.Masked().String(), "224.0.0.0/4"} {
		if err := ipt.Append(table, chainMasquerade, "-d", destination, "-j", "RETURN"); err != nil {
			return fmt.Errorf("write iptables chain %s: %w", chainMasquerade, err)
		}
	}
	if err := ipt.Append(table, chainMasquerade, "-j", "MASQUERADE", "--random-fully"); err != nil {
		return fmt.Errorf("write iptables chain %s: %w", chainMasquerade, err)
	}
	if err := ipt.AppendUnique(table, "POSTROUTING", jump(chainMasquerade, "-s", c.PodCIDR.Masked().String())...); err != nil {
		return fmt.Errorf("write iptables chain POSTROUTING: %w", err)
	}
	return nil
}

// acceptForwarded lets pods' packets through where an iptables firewall (Docker, ufw) guards
// forwarding. A rule of mote in nftables could not do so: each table on the hook must accept. Where
// no firewall guards forwarding, it writes nothing. From the second start on kube-proxy's rules are
// there. mote's jump comes after them, because a packet that they refuse must not be accepted
// before they have seen it.
func acceptForwarded(c Config) error {
	if _, err := exec.LookPath("iptables"); err != nil {
		return nil
	}
	ipt, err := iptables.New()
	if err != nil {
		return fmt.Errorf("open iptables: %w", err)
	}
	const table = "filter"
	rules, err := ipt.List(table, "FORWARD")
	if err != nil || !guarded(rules) {
		// A machine that has an iptables program, but not the kernel's part, guards nothing with
		// it.
		return nil
	}
	if err := recordFootprint(c, rulesForward); err != nil {
		return err
	}
	if err := ipt.ClearChain(table, chainForward); err != nil {
		return fmt.Errorf("make iptables chain %s: %w", chainForward, err)
	}
	for _, direction := range []string{"-i", "-o"} {
		if err := ipt.Append(table, chainForward, direction, c.Bridge, "-j", "ACCEPT"); err != nil {
			return fmt.Errorf("write iptables chain %s: %w", chainForward, err)
		}
	}
	if err := ipt.InsertUnique(table, "FORWARD", behindKubeProxy(rules), jump(chainForward)...); err != nil {
		return fmt.Errorf("write iptables chain FORWARD: %w", err)
	}
	return nil
}

// guarded reports whether the rules of chain FORWARD, in the form of iptables -S, may drop a
// packet. The rules of kube-proxy and mote do not count.
func guarded(rules []string) bool {
	for _, rule := range rules {
		if rule != "-P FORWARD ACCEPT" && strings.TrimSpace(rule) != "" && !ofKubeProxy(rule) && !strings.HasSuffix(rule, " -j "+chainForward) {
			return true
		}
	}
	return false
}

// behindKubeProxy returns the position in chain FORWARD, counted from 1, directly after the rules
// of kube-proxy at its beginning.
func behindKubeProxy(rules []string) int {
	position := 1
	for _, rule := range rules {
		switch {
		case !strings.HasPrefix(rule, "-A "):
		case ofKubeProxy(rule):
			position++
		default:
			return position
		}
	}
	return position
}

func ofKubeProxy(rule string) bool { return strings.Contains(rule, " -j KUBE-") }

func jump(chain string, match ...string) []string {
	return append(match, "-m", "comment", "--comment", ruleComment, "-j", chain)
}
