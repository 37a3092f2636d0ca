package machine

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mote-k8s/mote/addons/dns"
	"github.com/mote-k8s/mote/addons/metrics"
	"github.com/mote-k8s/mote/internal/host"
)

// portUse is a port that mote will listen on, with the setting that changes it.
type portUse struct {
	addr    netip.AddrPort
	who     string
	setting string
}

// portsOf lists every fixed port of the node: docs/architecture.md, "Ports".
func (m *Machine) portsOf() []portUse {
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	node := m.NodeIP
	if !node.IsValid() {
		node = m.BridgeAddress()
	}
	ports := []portUse{
		{netip.AddrPortFrom(m.HTTPSListenAddress, uint16(m.HTTPSListenPort)), "kube-apiserver", "--https-listen-port"},
		argPort(m.KubeletArgs, "port", node, 10250, "kubelet", "--kubelet-arg"),
		argPort(m.KubeletArgs, "healthz-port", loopback, 10248, "kubelet", "--kubelet-arg"),
		argPort(m.ControllerManagerArgs, "secure-port", m.MetricsAddress(), 10257, "kube-controller-manager", "--controller-manager-arg"),
		argPort(m.SchedulerArgs, "secure-port", m.MetricsAddress(), 10259, "kube-scheduler", "--scheduler-arg"),
	}
	if m.Proxy != "none" {
		ports = append(ports,
			argPort(m.ProxyArgs, "metrics-bind-address", m.MetricsAddress(), 10249, "kube-proxy", "--proxy-arg"),
			argPort(m.ProxyArgs, "healthz-bind-address", node, 10256, "kube-proxy", "--proxy-arg"))
	}
	if !slices.Contains(m.Disable, dns.Name) {
		ports = append(ports, portUse{netip.AddrPortFrom(m.addonsAddress(), dns.Port), "DNS", "--disable=" + dns.Name})
	}
	if !slices.Contains(m.Disable, metrics.Name) {
		ports = append(ports, portUse{netip.AddrPortFrom(m.addonsAddress(), metrics.Port), "metrics API", "--disable=" + metrics.Name})
	}
	return ports
}

// argPort returns the port of an upstream component, which the user's arguments may have changed.
func argPort(args []string, name string, addr netip.Addr, port uint16, who, setting string) portUse {
	for _, a := range args {
		text, ok := strings.CutPrefix(a, name+"=")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(text, 10, 16); err == nil {
			port = uint16(n)
		} else if ap, err := netip.ParseAddrPort(text); err == nil {
			addr, port = ap.Addr(), ap.Port()
		}
	}
	return portUse{netip.AddrPortFrom(addr, port), who, setting + " " + name + "=..."}
}

// checkPort returns an error that names the process whose socket keeps mote from listening on p, or
// nil.
func checkPort(p portUse, sockets []host.Socket) error {
	for _, s := range sockets {
		if s.UDP || !collide(p.addr, s.Addr) {
			continue
		}
		return fmt.Errorf("cannot listen on %s: in use by %s; stop it or set %s", p.addr, s.Owner(), p.setting)
	}
	return nil
}

// collide reports whether two listeners conflict: they have the same port, and the same address or
// one of them listens on every address.
func collide(a, b netip.AddrPort) bool {
	if a.Port() != b.Port() {
		return false
	}
	x, y := a.Addr().Unmap(), b.Addr().Unmap()
	return x == y || x.IsUnspecified() || y.IsUnspecified()
}
