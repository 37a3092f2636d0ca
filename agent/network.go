package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
)

const (
	sysctlForward = "/proc/sys/net/ipv4/ip_forward"
	// sysctlRedirects is the setting, of one interface or "all", that makes the kernel send ICMP
	// redirects: messages to a host about a shorter route.
	sysctlRedirects = "/proc/sys/net/ipv4/conf/%s/send_redirects"
	// sysctlBridgeFilter makes netfilter see packets between two pods of the bridge. Without it, a
	// pod's answer to another pod's Service request goes straight through the bridge and is never
	// translated back.
	sysctlBridgeFilter = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	// sysctlBridgeFilter6 does the same for IPv6: NetworkPolicies must also see packets between
	// pods' link-local addresses.
	sysctlBridgeFilter6 = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
	bridgeFilterModule  = "br_netfilter"
	// networkName is the name of the network in the CNI configuration, in host-local's leases and
	// in libcni's cache.
	networkName = "mote"
)

// setUpNetwork makes everything that binding NodeIP needs, calls ready, and makes the rest. So the
// apiserver can start while packet rules are written. The CNI configuration comes last, because
// containerd starts no pod without it. Each of these things may exist already.
func setUpNetwork(ctx context.Context, c Config, ready func()) error {
	if c.CNI != CNIBridge {
		err := ensureNodeIP(c)
		if err == nil {
			ready()
		}
		return err
	}
	if err := ensureBridge(c, c.gateway()); err != nil {
		return err
	}
	filtered, err := enableBridgeFilter(ctx)
	if err == nil && !filtered {
		err = routeBetweenPods(c)
	}
	if err != nil {
		return err
	}
	// This comes before ready: after it, followFiles watches the leases in the directory that this
	// may remove.
	if err := dropStaleLeases(c); err != nil {
		return err
	}
	ready()
	mode, err := packetRules(c)
	if err != nil {
		return err
	}
	if err := recordFootprint(c, mode); err != nil {
		return err
	}
	if err := os.WriteFile(sysctlForward, []byte("1"), 0o644); err != nil {
		return fmt.Errorf("switch on forwarding: %w", err)
	}
	if err := stopRedirects(c); err != nil {
		return err
	}
	if err := writeRules(ctx, c, mode); err != nil {
		return err
	}
	list, err := conflist(c, mode, !filtered)
	if err != nil {
		return err
	}
	return writeFile(c.conflist(), list, 0o600)
}

// packetRules returns the mode for mote's own rules and those of host ports. It is kube-proxy's
// mode, or without kube-proxy any mode that works.
func packetRules(c Config) (string, error) {
	if c.Proxy == ProxyNone {
		return chooseProxyMode(ProxyAuto)
	}
	return chooseProxyMode(c.Proxy)
}

// ensureNodeIP gives NodeIP to the bridge if no interface has it. It is for a machine with a
// foreign pod network: the node has a stable address there too. The bridge gets the address alone,
// without the network around it.
func ensureNodeIP(c Config) error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range addrs {
		prefix, err := netip.ParsePrefix(addr.String())
		if err == nil && prefix.Addr() == c.NodeIP {
			return nil
		}
	}
	if !c.NodeIP.Is4() {
		return fmt.Errorf("no interface has the node's address %s; set another --node-ip", c.NodeIP)
	}
	return ensureBridge(c, netip.PrefixFrom(c.NodeIP, c.NodeIP.BitLen()))
}

// ensureBridge makes the bridge with an address. This machine can bind and reach the address even
// if the bridge has no ports, because local addresses need no carrier.
func ensureBridge(c Config, address netip.Prefix) error {
	if err := recordBridge(c); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = c.Bridge
	// A MAC address that was set explicitly stays. Otherwise the bridge would take the lowest one
	// of its ports and change it whenever pods come and go, while pods still have the old one in
	// their ARP caches.
	attrs.HardwareAddr = bridgeMAC(c)
	err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make bridge %s: %w", c.Bridge, err)
	}
	link, err := netlink.LinkByName(c.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", c.Bridge, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("%s is a %s and not a bridge; remove it or set another bridge name", c.Bridge, link.Type())
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("give %s to bridge %s: %w", address, c.Bridge, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set bridge %s up: %w", c.Bridge, err)
	}
	return routeServices(c, link, address.Addr())
}

// routeServices adds a route for packets from the node itself to a Service. The kernel looks for a
// route before netfilter replaces the destination, and a machine without a default route has none.
func routeServices(c Config, bridge netlink.Link, source netip.Addr) error {
	if !c.ServiceCIDR.IsValid() {
		return nil
	}
	services := c.ServiceCIDR.Masked()
	err := netlink.RouteReplace(&netlink.Route{
		LinkIndex: bridge.Attrs().Index,
		Scope:     netlink.SCOPE_LINK,
		Src:       source.AsSlice(),
		Dst: &net.IPNet{
			IP:   services.Addr().AsSlice(),
			Mask: net.CIDRMask(services.Bits(), services.Addr().BitLen()),
		},
	})
	if err != nil {
		return fmt.Errorf("route %s to bridge %s: %w", services, c.Bridge, err)
	}
	return nil
}

// bridgeMAC returns a locally administered address that is derived from the names of the bridge and
// the node and from the pod network. It is the same at every start.
func bridgeMAC(c Config) net.HardwareAddr {
	sum := sha256.Sum256([]byte(c.Bridge + c.PodCIDR.String() + c.NodeName))
	return net.HardwareAddr{0x02, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// stopRedirects stops the kernel from sending redirects to pods. It would send them because the
// route for Services leads to the pods' own link. Each redirect uses up part of the number of ICMP
// messages that the kernel may send to a pod in a second. Then the refusal of a Service without
// endpoints would not be sent, and its clients would wait in vain. An interface sends redirects if
// its own setting or that of "all" is on. Every other interface still follows its own setting.
func stopRedirects(c Config) error {
	for _, name := range []string{"all", c.Bridge} {
		if err := os.WriteFile(fmt.Sprintf(sysctlRedirects, name), []byte("0"), 0o644); err != nil {
			return fmt.Errorf("switch off ICMP redirects of %s: %w", name, err)
		}
	}
	return nil
}

// enableBridgeFilter loads br_netfilter and switches the filter on. It returns false if the module
// cannot be loaded. The kernel itself loads all other modules when they are used.
func enableBridgeFilter(ctx context.Context) (bool, error) {
	if _, err := os.Stat(sysctlBridgeFilter); err != nil {
		if out, err := exec.CommandContext(ctx, "modprobe", bridgeFilterModule).CombinedOutput(); err != nil {
			slog.Info("br_netfilter is not there: pods reach each other through the node",
				"component", "network", "err", err, "output", strings.TrimSpace(string(out)))
			return false, nil
		}
	}
	for _, sysctl := range []string{sysctlBridgeFilter, sysctlBridgeFilter6} {
		if err := os.WriteFile(sysctl, []byte("1"), 0o644); err != nil {
			return false, fmt.Errorf("switch on packet filtering on bridges: %w", err)
		}
	}
	return true, nil
}

// routeBetweenPods makes the node route packets between pods. It is for a kernel that does not show
// bridged packets to netfilter. There the bridge's ports are isolated from each other (conflist),
// and the node answers ARP requests for all pods' addresses, without delay. So the node routes,
// translates and filters every packet from one pod to another.
func routeBetweenPods(c Config) error {
	for _, sysctl := range []struct{ path, value string }{
		{"/proc/sys/net/ipv4/conf/" + c.Bridge + "/proxy_arp_pvlan", "1"},
		{"/proc/sys/net/ipv4/neigh/" + c.Bridge + "/proxy_delay", "0"},
	} {
		if err := os.WriteFile(sysctl.path, []byte(sysctl.value), 0o644); err != nil {
			return fmt.Errorf("route between pods: %w", err)
		}
	}
	return nil
}

// dropStaleLeases deletes the leases of pod addresses from before the last boot, which ended all
// their pods. The run directory is usually a tmpfs and empty after a boot. This is for machines
// where it is not.
func dropStaleLeases(c Config) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	marker := filepath.Join(c.run().CNI(), "boot-id")
	if last, err := os.ReadFile(marker); err == nil && strings.TrimSpace(string(last)) == boot {
		return nil
	}
	if err := os.RemoveAll(c.run().CNI()); err != nil {
		return fmt.Errorf("remove old pod address leases: %w", err)
	}
	return writeFile(marker, []byte(boot+"\n"), 0o600)
}

// conflist returns the CNI configuration: the bridge with host-local addresses, and host ports.
// With isolated, pods see only the node on the bridge.
func conflist(c Config, mode string, isolated bool) ([]byte, error) {
	list := map[string]any{
		"cniVersion": "1.0.0",
		"name":       networkName,
		"plugins": []any{
			map[string]any{
				"type":             "bridge",
				"bridge":           c.Bridge,
				"isDefaultGateway": true,
				"hairpinMode":      true,
				"portIsolation":    isolated,
				// Masquerading is one rule of mote for the whole network instead of one for each
				// pod.
				"ipMasq": false,
				"ipam": map[string]any{
					"type":    "host-local",
					"dataDir": filepath.Join(c.run().CNI(), "leases"),
					"ranges": [][]any{{map[string]any{
						"subnet":  c.PodCIDR.Masked().String(),
						"gateway": c.gateway().Addr().String(),
					}}},
				},
			},
			map[string]any{
				"type":         "portmap",
				"backend":      mode,
				"snat":         true,
				"capabilities": map[string]bool{"portMappings": true},
			},
		},
	}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the CNI configuration: %w", err)
	}
	return append(data, '\n'), nil
}

// removeBridge removes the bridge if this node made it. The pods' interfaces on it end with their
// network namespaces.
func removeBridge(c Config, f footprint) error {
	if !f.Bridge {
		return nil
	}
	link, err := netlink.LinkByName(c.Bridge)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", c.Bridge, err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, port := range links {
		// The kernel destroys the interfaces of an ended network namespace later, at a time of its
		// own.
		if port.Attrs().MasterIndex == link.Attrs().Index && strings.HasPrefix(port.Attrs().Name, "veth") {
			if err := netlink.LinkDel(port); err != nil && !errors.As(err, &missing) && !errors.Is(err, syscall.ENODEV) {
				return fmt.Errorf("remove interface %s: %w", port.Attrs().Name, err)
			}
		}
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("remove bridge %s: %w", c.Bridge, err)
	}
	return nil
}
