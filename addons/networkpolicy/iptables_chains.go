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

// ipChains are our chains of one address family, and the rules that lead to them.
type ipChains struct {
	ipt     *iptables.IPTables
	restore string // the program that takes many rules at once

	// known is false until what former lives left is removed or replaced.
	known   bool
	present []string // chains that are there
	text    string   // of all rules
}

// openChains finds out whether the kernel and its programs take rules of a family.
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
	// The programs are there without the kernel's part of them, too.
	_, err = c.ours()
	return c, err
}

// spoken says whether the kernel knows an address family at all: IPv6 can be left out of it or be switched off at
// boot. Where an interface is merely forbidden to use it, that may change at any time.
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

// leads says whether packets are led to our chains: the end of a life that wrote them may have come before.
func (c *ipChains) leads() (bool, error) {
	rules, err := c.ipt.List(iptTable, "FORWARD")
	if err != nil {
		return false, fmt.Errorf("list iptables chain FORWARD: %w", err)
	}
	return slices.ContainsFunc(rules, func(rule string) bool { return strings.HasSuffix(rule, "-j "+chainName("forward")) }), nil
}

// write writes all chains in one go, if one of them changed, and then leads packets there.
func (c *ipChains) write(ctx context.Context, chains map[string][]string, hooks []hook) error {
	if err := c.learn(); err != nil {
		return err
	}
	c.known = false
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
	// Each time: where somebody has flushed all rules this fails, and the next attempt writes them anew.
	for _, h := range hooks {
		if err := c.ipt.AppendUnique(iptTable, h.chain, h.rule...); err != nil {
			return fmt.Errorf("write iptables chain %s: %w", h.chain, err)
		}
	}
	c.known = true
	return nil
}

// learn looks at what is there, if that is not known.
func (c *ipChains) learn() (err error) {
	if !c.known {
		c.text = ""
		c.present, err = c.ours()
	}
	return err
}

// commit writes all changes of text at once.
func (c *ipChains) commit(ctx context.Context, text *strings.Builder) error {
	text.WriteString("COMMIT\n")
	cmd := exec.CommandContext(ctx, c.restore, "--noflush", "--wait")
	cmd.Stdin = strings.NewReader(text.String())
	if printed, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write iptables rules: %w: %s", err, bytes.TrimSpace(printed))
	}
	return nil
}

// remove deletes what leads to our chains, and them.
func (c *ipChains) remove(ctx context.Context) error {
	if err := c.learn(); err != nil || len(c.present) == 0 {
		return err
	}
	c.known = false
	var text strings.Builder
	text.WriteString("*" + iptTable + "\n")
	for _, name := range c.present {
		fmt.Fprintf(&text, ":%s - [0:0]\n", name) // emptied: they name each other
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

// removeIPTables takes away what is left in iptables, by a life without nftables or one that was cut short. What cannot be
// removed keeps nothing else.
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
