package networkpolicy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/addons/api"
)

// lab is a node with its bridge, pods behind the bridge, and a client outside. Each has its own
// network namespace, which ends with the test. Every host answers on every port that the tests use.
type lab struct {
	t     *testing.T
	node  *host
	hosts map[string]*host
}

type host struct {
	name    string
	ns      int // descriptor of the network namespace
	address netip.Addr
}

const (
	bridge  = "mote0"
	nodeIP  = "10.42.0.1"
	outside = "192.0.2.2"
	// refused is the time without an answer after which packets count as dropped. A packet that
	// passes arrives within microseconds, and a check that expects it waits longer.
	refused = 30 * time.Millisecond
	arrives = 5 * time.Second
)

// labPorts returns the TCP and UDP ports on which every host of the lab answers.
func labPorts() []int { return []int{80, 81, 443, 5353, 8080, 9153, 10053} }

// newLab makes a lab whose pods are numbered from 10.42.0.11 on. With isolated, pods reach each
// other through the node alone, as on a kernel without br_netfilter.
func newLab(t *testing.T, isolated bool, pods ...string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := &lab{t: t, hosts: make(map[string]*host)}
	l.node = l.add("node", nodeIP)
	l.in(l.node, func() {
		link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}}
		require.NoError(t, netlink.LinkAdd(link))
		up(t, link, nodeIP+"/24")
		set(t, "ipv4/ip_forward", "1")
		set(t, "ipv4/conf/all/send_redirects", "0") // as the agent does
		set(t, "ipv4/conf/"+bridge+"/send_redirects", "0")
		if isolated {
			set(t, "ipv4/conf/"+bridge+"/proxy_arp_pvlan", "1")
			set(t, "ipv4/neigh/"+bridge+"/proxy_delay", "0")
		}
		filter := "1"
		if isolated {
			filter = "0"
		}
		if _, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil {
			set(t, "bridge/bridge-nf-call-iptables", filter)
			set(t, "bridge/bridge-nf-call-ip6tables", filter)
		} else if !isolated {
			t.Skip("this kernel has no br_netfilter")
		}
	})
	for i, name := range pods {
		l.connect(l.add(name, fmt.Sprintf("10.42.0.%d", 11+i)), nodeIP, func(link netlink.Link) {
			master, err := netlink.LinkByName(bridge)
			require.NoError(t, err)
			require.NoError(t, netlink.LinkSetMaster(link, master))
			require.NoError(t, netlink.LinkSetHairpin(link, true))
			require.NoError(t, netlink.LinkSetIsolated(link, isolated))
			require.NoError(t, netlink.LinkSetUp(link))
		})
	}
	l.connect(l.add("outside", outside), "192.0.2.1", func(link netlink.Link) { up(t, link, "192.0.2.1/24") })
	for _, h := range l.hosts {
		l.serve(h)
	}
	return l
}

func up(t *testing.T, link netlink.Link, address string) {
	t.Helper()
	parsed, err := netlink.ParseAddr(address)
	require.NoError(t, err)
	require.NoError(t, netlink.AddrAdd(link, parsed))
	require.NoError(t, netlink.LinkSetUp(link))
}

func set(t *testing.T, key, value string) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o600))
}

// add makes a host with its namespace.
func (l *lab) add(name, address string) *host {
	h := &host{name: name, address: netip.MustParseAddr(address)}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		made <- err
	}()
	require.NoError(l.t, <-made)
	l.t.Cleanup(func() { unix.Close(h.ns) })
	l.hosts[name] = h
	l.in(h, func() {
		lo, err := netlink.LinkByName("lo")
		require.NoError(l.t, err)
		require.NoError(l.t, netlink.LinkSetUp(lo))
	})
	return h
}

// connect joins a host to the node. attach sets up the node's end.
func (l *lab) connect(h *host, gateway string, attach func(netlink.Link)) {
	l.in(l.node, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "v-" + h.name
		link := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.ns)}
		require.NoError(l.t, netlink.LinkAdd(link))
		attach(link)
	})
	l.in(h, func() {
		link, err := netlink.LinkByName("eth0")
		require.NoError(l.t, err)
		up(l.t, link, h.address.String()+"/24")
		require.NoError(l.t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}))
	})
}

// in calls f on a thread in the host's namespace. A failed requirement in f still ends the test.
func (l *lab) in(h *host, f func()) {
	l.t.Helper()
	done := make(chan bool)
	go func() {
		finished := false
		defer func() { done <- finished }()
		runtime.LockOSThread()
		if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
			l.t.Errorf("enter namespace of %s: %v", h.name, err)
			return
		}
		f()
		finished = true
	}()
	if !<-done {
		l.t.FailNow()
	}
}

// serve echoes TCP and UDP data.
func (l *lab) serve(h *host) {
	l.in(h, func() {
		for _, port := range labPorts() {
			address := fmt.Sprintf(":%d", port)
			tcp, err := net.Listen("tcp", address)
			require.NoError(l.t, err)
			l.t.Cleanup(func() { tcp.Close() })
			go func() {
				for {
					conn, err := tcp.Accept()
					if err != nil {
						return
					}
					go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
				}
			}()
			udp, err := net.ListenPacket("udp", address)
			require.NoError(l.t, err)
			l.t.Cleanup(func() { udp.Close() })
			go func() {
				buffer := make([]byte, 64)
				for {
					n, from, err := udp.ReadFrom(buffer)
					if err != nil {
						return
					}
					_, _ = udp.WriteTo(buffer[:n], from)
				}
			}()
		}
	})
}

// reach checks one expectation, "CLIENT SERVER PROTOCOL PORT yes|no". The client "ingress" is the
// node with the ingress' mark, and a server may be an address.
func (l *lab) reach(t *testing.T, expectation string) {
	t.Helper()
	words := strings.Fields(expectation)
	from, to, protocol, port, want := words[0], words[1], words[2], words[3], words[4] == "yes"
	mark := 0
	if from == "ingress" {
		from, mark = "node", api.IngressMark
	}
	target := to
	if h, ok := l.hosts[to]; ok {
		target = h.address.String()
	}
	within := refused
	if want {
		within = arrives
	}
	var err error
	l.in(l.hosts[from], func() {
		if protocol == "sctp" {
			err = l.sctp(target, port, within)
		} else {
			err = echo(protocol, net.JoinHostPort(target, port), mark, within)
		}
	})
	if (err == nil) != want {
		t.Errorf("%s: %v", expectation, err)
	}
}

// dialer connects from the calling thread's namespace. An IP address needs no resolver, so no other
// goroutine starts.
func dialer(mark int, within time.Duration) *net.Dialer {
	return &net.Dialer{Timeout: within, FallbackDelay: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if mark == 0 {
			return nil
		}
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }), err)
	}}
}

func echo(network, address string, mark int, within time.Duration) error {
	conn, err := dialer(mark, within).Dial(network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	return ping(conn, within)
}

// ping sends a word on a connection and waits for the echo.
func ping(conn net.Conn, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 5))
	return err
}

// sctp sends the first packet of an association and checks whether it arrives. The kernel does not
// need SCTP for this.
func (l *lab) sctp(target, port string, within time.Duration) error {
	var server *host
	for _, h := range l.hosts {
		if h.address.String() == target {
			server = h
		}
	}
	var listener net.PacketConn
	var err error
	l.in(server, func() { listener, err = net.ListenPacket("ip4:132", target) })
	if err != nil {
		return err
	}
	defer listener.Close()
	conn, err := net.Dial("ip4:132", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	var number uint16
	if _, err := fmt.Sscan(port, &number); err != nil {
		return err
	}
	// Common header, then an INIT chunk: tag, window, streams, first sequence number.
	packet := make([]byte, 32)
	binary.BigEndian.PutUint16(packet[0:], 40000)
	binary.BigEndian.PutUint16(packet[2:], number)
	packet[12] = 1
	binary.BigEndian.PutUint16(packet[14:], 20)
	binary.BigEndian.PutUint32(packet[16:], 1)
	binary.BigEndian.PutUint32(packet[20:], 65536)
	binary.BigEndian.PutUint32(packet[24:], 0x00010001)
	binary.LittleEndian.PutUint32(packet[8:], castagnoli(packet))
	if _, err := conn.Write(packet); err != nil {
		return err
	}
	if err := listener.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, _, err = listener.ReadFrom(make([]byte, 64))
	return err
}

// benchRules opens nftables in a private network namespace of the benchmark. The thread ends with
// the benchmark.
func benchRules(b *testing.B) *nftables {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	runtime.LockOSThread()
	require.NoError(b, unix.Unshare(unix.CLONE_NEWNET))
	rules, err := openNFTables()
	require.NoError(b, err)
	return rules
}
