package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/vishvananda/netlink"
	"sigs.k8s.io/knftables"
)

// StateSkip grades a check that did not run. The Finding's message gives the reason.
const StateSkip State = "skip"

// restartHint ends the errors about things that each start makes.
const restartHint = "start mote again to have it back, and find out who took it away"

// CheckNetwork checks whether the machine's network still has everything that a running node set up
// there. It reads only DataDir, Bridge, CNI and PodCIDR of c, and changes nothing.
func CheckNetwork(ctx context.Context, c Config) []Finding {
	names := []string{"forwarding", "bridge", "packet-rules", "mtu"}
	if c.CNI != CNIBridge {
		var skipped []Finding
		for _, name := range names {
			skipped = append(skipped, Finding{name, StateSkip, "--cni=" + c.CNI + ": the pod network is not mote's"})
		}
		return skipped
	}
	mtu, err := uplinkMTU(c)
	return []Finding{
		found(names[0], "the node forwards pods' packets", checkForwarding(), StateFail),
		found(names[1], c.Bridge+" is up with "+c.gateway().String(), checkBridge(c), StateFail),
		found(names[2], "what mote writes for the pod network is there", checkOwnRules(ctx, c), StateFail),
		found(names[3], mtu, err, StateWarn),
	}
}

func checkForwarding() error {
	value, err := os.ReadFile(sysctlForward)
	if err != nil {
		return fmt.Errorf("look at forwarding: %w", err)
	}
	if strings.TrimSpace(string(value)) != "1" {
		return errors.New("net.ipv4.ip_forward is off: pods reach nothing but their bridge; " +
			"run sysctl -w net.ipv4.ip_forward=1, and look into /etc/sysctl.conf and /etc/sysctl.d for who switched it off")
	}
	return nil
}

func checkBridge(c Config) error {
	link, err := netlink.LinkByName(c.Bridge)
	if err != nil {
		return fmt.Errorf("cannot find bridge %s: %w; %s", c.Bridge, err, restartHint)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("bridge %s is down; run ip link set %s up, and find out who took it down", c.Bridge, c.Bridge)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of bridge %s: %w", c.Bridge, err)
	}
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IPNet.String() == c.gateway().String() }) {
		return fmt.Errorf("bridge %s has lost its address %s; %s", c.Bridge, c.gateway(), restartHint)
	}
	return nil
}

// checkOwnRules looks for the rules that writeRules wrote. It skips kube-proxy's rules, which are
// many and change: using a Service shows whether they work.
func checkOwnRules(ctx context.Context, c Config) error {
	f, err := readFootprint(c)
	if err != nil {
		return err
	}
	missing := fmt.Errorf("%s names no packet rules of the pod network: mote has not written them yet; "+
		"see \"mote status\" and \"mote logs --component network\"", c.data().Footprint())
	for _, kind := range f.Rules {
		if kind == rulesForward {
			continue // checkForwardChain checks this kind
		}
		// After a change of the mode the footprint names two kinds of rules. The machine needs one
		// of them.
		if missing = ownRulesOf(ctx, c, kind); missing == nil {
			break
		}
	}
	return errors.Join(missing, checkForwardChain())
}

func ownRulesOf(ctx context.Context, c Config, kind string) error {
	switch kind {
	case ProxyNFTables:
		nft, err := knftables.New(knftables.IPv4Family, nftTable)
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		if rules, err := nft.ListRules(ctx, nftChain); err != nil || len(rules) == 0 {
			return fmt.Errorf("nftables table ip %s has no rule any more: pods reach nothing outside the cluster; %s", nftTable, restartHint)
		}
	case ProxyIPTables:
		ipt, err := iptables.New()
		if err != nil {
			return fmt.Errorf("open iptables: %w", err)
		}
		if there, err := ipt.Exists("nat", "POSTROUTING", jump(chainMasquerade, "-s", c.PodCIDR.Masked().String())...); err != nil || !there {
			return fmt.Errorf("iptables chain %s is not used any more: pods reach nothing outside the cluster; %s", chainMasquerade, restartHint)
		}
	}
	return nil
}

// checkForwardChain detects a firewall that started, or read its rules again, after mote.
func checkForwardChain() error {
	ipt, err := iptables.New()
	if err != nil {
		return nil // without iptables there is no such firewall
	}
	rules, err := ipt.List("filter", "FORWARD")
	if err != nil || !guarded(rules) {
		return nil // like acceptForwarded
	}
	if !slices.ContainsFunc(rules, func(rule string) bool { return strings.HasSuffix(rule, "-j "+chainForward) }) {
		return fmt.Errorf("a firewall guards forwarding (iptables -S FORWARD) and lets pods through no more; start mote again after the firewall")
	}
	return nil
}

// uplinkMTU compares the MTU of the pods' interfaces with that of the default route's interface.
func uplinkMTU(c Config) (string, error) {
	bridge, err := netlink.LinkByName(c.Bridge)
	if err != nil {
		return "", fmt.Errorf("cannot find bridge %s: %w", c.Bridge, err)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	mtu := bridge.Attrs().MTU
	for _, route := range routes {
		if route.Dst != nil && !route.Dst.IP.IsUnspecified() || route.LinkIndex == 0 {
			continue
		}
		uplink, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil {
			return "", fmt.Errorf("find the default route's interface: %w", err)
		}
		if attrs := uplink.Attrs(); attrs.MTU < mtu {
			return "", fmt.Errorf("pods send packets of up to %d bytes and %s takes %d: where ICMP is filtered, large transfers "+
				"to the outside hang; let ICMP \"fragmentation needed\" through", mtu, attrs.Name, attrs.MTU)
		}
		return fmt.Sprintf("pods' %d bytes fit the uplink", mtu), nil
	}
	return fmt.Sprintf("%d bytes; there is no default route", mtu), nil
}
