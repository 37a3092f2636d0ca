package machine

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mote-k8s/mote/addons/dns"
	"github.com/mote-k8s/mote/addons/metrics"
)

// portUse is a port that mote will listen on, and the setting that would move it.
type portUse struct {
	addr    netip.AddrPort
	who     string
	setting string
}

// portsOf lists every fixed port of a node with settings s: docs/architecture.md, "Ports".
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

// argPort is an upstream component's port, which the user's arguments may have moved.
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

// listener is a TCP socket that somebody listens on.
type listener struct {
	addr  netip.AddrPort
	inode string
}

// checkPort says who is in the way of p among listeners, nil when nobody is.
func checkPort(p portUse, listeners []listener) error {
	for _, l := range listeners {
		if !collide(p.addr, l.addr) {
			continue
		}
		return fmt.Errorf("cannot listen on %s: in use by %s; stop it or set %s", p.addr, ownerOf(l.inode), p.setting)
	}
	return nil
}

// collide tells whether one listener keeps another from its address: same port, and the same
// address or one of them every address.
func collide(a, b netip.AddrPort) bool {
	if a.Port() != b.Port() {
		return false
	}
	x, y := a.Addr().Unmap(), b.Addr().Unmap()
	return x == y || x.IsUnspecified() || y.IsUnspecified()
}

// readListeners lists the TCP sockets of this network namespace that are listened on.
func readListeners() ([]listener, error) {
	var out []listener
	for _, path := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list open ports: %w", err)
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			// "  0: 0100007F:1F90 00000000:0000 0A ... inode": proc(5).
			fields := strings.Fields(lines.Text())
			const listening = "0A"
			if len(fields) < 10 || fields[3] != listening {
				continue
			}
			addr, err := parseProcAddr(fields[1])
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			out = append(out, listener{addr, fields[9]})
		}
	}
	return out, nil
}

// parseProcAddr reads ADDRESS:PORT in hexadecimal. The address is written as 32-bit words in the
// machine's byte order, which is little-endian on every machine that mote runs on.
func parseProcAddr(text string) (netip.AddrPort, error) {
	host, portText, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", text)
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	addr, ok := netip.AddrFromSlice(raw)
	port, err := strconv.ParseUint(portText, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", text)
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(port)), nil
}

// ownerOf names the process that holds the socket inode: "pid 812 (kube-apiserver)".
func ownerOf(inode string) string {
	want := "socket:[" + inode + "]"
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "another process"
	}
	for _, fd := range fds {
		if link, err := os.Readlink(fd); err != nil || link != want {
			continue // processes end while we look
		}
		pid := strings.Split(fd, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			return "pid " + pid
		}
		return fmt.Sprintf("pid %s (%s)", pid, strings.TrimSpace(string(name)))
	}
	return "another process"
}
