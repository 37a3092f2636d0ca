package networkpolicy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/mote-k8s/mote/addons/api"
)

// ipChains holds mote's chains of one address family, and the rules that lead to them.
type ipChains struct {
	ipt     *iptables.IPTables
	restore string // the program that reads many rules at once

	// known is false until the remains of previous runs are removed or replaced.
	known   bool
	present []string // chains that exist
	text    string   // of all rules
}

// openChains checks whether the kernel and its programs support rules of a family.
func openChains(f family) (*ipChains, error) {
	c := &ipChains{restore: "iptables-restore"}
	protocol := iptables.ProtocolIPv4
	if f.key == "ip6" {
		protocol, c.restore = iptables.ProtocolIPv6, "ip6tables-restore"
	}
	var err error
	if c.ipt, err = iptables.NewWithProtocol(protocol); err != nil {
		return nil, fmt.Errorf("open iptables: %w", err)
	}
	if _, err := exec.LookPath(c.restore); err != nil {
		return nil, fmt.Errorf("the program %s is missing", c.restore)
	}
	// The programs may exist while the kernel lacks its part.
	_, err = c.ours()
	return c, err
}

// spoken reports whether the kernel supports an address family at all. IPv6 can be left out of the
// kernel or switched off at boot. If only an interface is forbidden to use it, that may change at
// any time.
func (f family) spoken() bool {
	if f.key == "ip" {
		return true
	}
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

func (c *ipChains) ours() ([]string, error) {
	chains, err := c.ipt.ListChains(iptTable)
	if err != nil {
		return nil, fmt.Errorf("list iptables chains: %w", err)
	}
	return slices.DeleteFunc(chains, func(name string) bool { return !strings.HasPrefix(name, iptPrefix) }), nil
}

// chainName returns a name of at most 28 characters.
func chainName(name string) string {
	sum := sha256.Sum256([]byte(name))
	return iptPrefix + hex.EncodeToString(sum[:8])
}

// hook is a rule of a built-in chain that leads to mote's chain. It comes last there, because an
// accepted packet skips the rest.
type hook struct {
	chain string
	rule  []string
}

func hooks(bridge string) []hook {
	mark := fmt.Sprintf("%#x/%#x", api.IngressMark, api.IngressMark)
	return []hook{
		{"FORWARD", []string{"-j", chainName("forward")}},
		{"INPUT", []string{"-i", bridge, "-j", chainName(chainFrom)}},
		// OUTPUT is not used, because Services' addresses are not translated yet there.
		{"POSTROUTING", []string{"-o", bridge, "-m", "mark", "--mark", mark, "-m", "conntrack", "--ctdir", "ORIGINAL", "-j", chainName(chainTo)}},
	}
}

// leads reports whether packets are led to mote's chains. A previous run may have written chains
// and ended before that.
func (c *ipChains) leads() (bool, error) {
	rules, err := c.ipt.List(iptTable, "FORWARD")
	if err != nil {
		return false, fmt.Errorf("list iptables chain FORWARD: %w", err)
	}
	return slices.ContainsFunc(rules, func(rule string) bool { return strings.HasSuffix(rule, "-j "+chainName("forward")) }), nil
}

// write writes all chains at once if one of them changed, and then leads packets to them.
func (c *ipChains) write(ctx context.Context, chains map[string][]string, hooks []hook) error {
	if err := c.learn(); err != nil {
		return err
	}
	c.known = false
	names := slices.Sorted(maps.Keys(chains))
	var text strings.Builder
	text.WriteString("*" + iptTable + "\n")
	for _, name := range names {
		fmt.Fprintf(&text, ":%s - [0:0]\n", name) // created, or emptied
	}
	for _, name := range names {
		for _, line := range chains[name] {
			fmt.Fprintf(&text, "-A %s %s\n", name, line)
		}
	}
	// Only chains that exist can be removed, so these lines do not count as a change.
	stale := slices.DeleteFunc(slices.Clone(c.present), func(name string) bool { _, ok := chains[name]; return ok })
	if text.String() != c.text || len(stale) > 0 {
		c.text = text.String()
		for _, name := range stale {
			fmt.Fprintf(&text, ":%s - [0:0]\n", name)
		}
		for _, name := range stale {
			fmt.Fprintf(&text, "-X %s\n", name)
		}
		if err := c.commit(ctx, &text); err != nil {
			return err
		}
		c.present = names
	}
	// This is done each time. If another program flushed all rules, it fails, and the next attempt
	// writes them again.
	for _, h := range hooks {
		if err := c.ipt.AppendUnique(iptTable, h.chain, h.rule...); err != nil {
			return fmt.Errorf("write iptables chain %s: %w", h.chain, err)
		}
	}
	c.known = true
	return nil
}

// learn reads the present chains if they are not known.
func (c *ipChains) learn() (err error) {
	if !c.known {
		c.text = ""
		c.present, err = c.ours()
	}
	return err
}

// commit applies all changes in text at once.
func (c *ipChains) commit(ctx context.Context, text *strings.Builder) error {
	text.WriteString("COMMIT\n")
	cmd := exec.CommandContext(ctx, c.restore, "--noflush", "--wait")
	cmd.Stdin = strings.NewReader(text.String())
	if printed, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write iptables rules: %w: %s", err, bytes.TrimSpace(printed))
	}
	return nil
}

// remove deletes the rules that lead to mote's chains, and then the chains.
func (c *ipChains) remove(ctx context.Context) error {
	if err := c.learn(); err != nil || len(c.present) == 0 {
		return err
	}
	c.known = false
	var text strings.Builder
	text.WriteString("*" + iptTable + "\n")
	for _, name := range c.present {
		fmt.Fprintf(&text, ":%s - [0:0]\n", name) // emptied first, because they refer to each other
	}
	for _, chain := range []string{"FORWARD", "INPUT", "POSTROUTING"} {
		rules, err := c.ipt.List(iptTable, chain)
		if err != nil {
			return fmt.Errorf("list iptables chain %s: %w", chain, err)
		}
		for _, rule := range rules {
			words := strings.Fields(rule)
			if len(words) > 2 && strings.HasPrefix(words[len(words)-1], iptPrefix) {
				fmt.Fprintf(&text, "-D %s\n", strings.Join(words[1:], " "))
			}
		}
	}
	for _, name := range c.present {
		fmt.Fprintf(&text, "-X %s\n", name)
	}
	if err := c.commit(ctx, &text); err != nil {
		return err
	}
	c.present, c.text, c.known = nil, "", true
	return nil
}

// removeIPTables removes remains in iptables, from a run without nftables or an interrupted one. An
// error for one item does not stop the removal of the others.
func removeIPTables(ctx context.Context) error {
	var errs []error
	for _, f := range []family{{key: "ip"}, {key: "ip6"}} {
		if chains, err := openChains(f); err == nil {
			errs = append(errs, chains.remove(ctx))
		}
	}
	if sets, err := openSets(); err == nil {
		defer sets.Close()
		errs = append(errs, removeSets(sets, nil))
	}
	return errors.Join(errs...)
}
