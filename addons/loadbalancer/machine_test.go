package loadbalancer

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// inNamespace puts the test on a thread with its own network namespace, which ends with the test.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
}

func addLink(t *testing.T, name, address string) netlink.Link {
	t.Helper()
	require.NoError(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
	link, err := netlink.LinkByName(name)
	require.NoError(t, err)
	parsed, err := netlink.ParseAddr(address)
	require.NoError(t, err)
	require.NoError(t, netlink.AddrAdd(link, parsed))
	require.NoError(t, netlink.LinkSetUp(link))
	return link
}

func TestNodeAddress(t *testing.T) {
	inNamespace(t)
	own := netip.MustParseAddr("10.42.0.1")
	is := func(want string) {
		t.Helper()
		got, err := NodeAddress("mote0", own)
		require.NoError(t, err)
		require.Equal(t, want, got.String())
	}
	addLink(t, "mote0", "10.42.0.1/24")
	is("10.42.0.1")
	addLink(t, "first", "192.0.2.1/24")
	is("192.0.2.1")
	uplink := addLink(t, "uplink", "198.51.100.1/24")
	is("192.0.2.1")
	require.NoError(t, netlink.RouteAdd(&netlink.Route{LinkIndex: uplink.Attrs().Index, Gw: net.IPv4(198, 51, 100, 2)}))
	is("198.51.100.1")
}

func TestPoolAddressesComeAndGo(t *testing.T) {
	inNamespace(t)
	link := addLink(t, "mote0", "10.42.0.1/24")
	a, b := netip.MustParseAddr("192.0.2.129"), netip.MustParseAddr("192.0.2.130")
	for _, want := range [][]netip.Addr{{a}, {a, b}, {b}, nil} {
		require.NoError(t, keepAddresses(&linkAddresses{"mote0", want}))
		present, err := netlink.AddrList(link, netlink.FAMILY_V4)
		require.NoError(t, err)
		var got []netip.Addr
		for _, p := range present[1:] { // the link's own address stays, and stays first
			address, _ := netip.AddrFromSlice(p.IP.To4())
			got = append(got, address)
		}
		slices.SortFunc(got, netip.Addr.Compare)
		require.Equal(t, want, got)
	}
	require.NoError(t, keepAddresses(&linkAddresses{"mote0", []netip.Addr{a}}))
	require.NoError(t, keepAddresses(nil))
	present, err := netlink.AddrList(link, netlink.FAMILY_V4)
	require.NoError(t, err)
	require.Len(t, present, 1)
}

// TestOthersAddressesStay checks that neither a label that ends like mote's, nor mote's label on
// another interface, makes an address mote's.
func TestOthersAddressesStay(t *testing.T) {
	inNamespace(t)
	const long = "fifteen-letters"
	link, uplink := addLink(t, long, "10.42.0.1/24"), addLink(t, "uplink", "198.51.100.1/24")
	add := func(link netlink.Link, address, label string) {
		parsed, err := netlink.ParseAddr(address)
		require.NoError(t, err)
		parsed.Label = label
		require.NoError(t, netlink.AddrAdd(link, parsed))
	}
	add(uplink, "192.0.2.1/32", "uplink:lb")
	add(uplink, "192.0.2.2/32", "uplink:x:mote")
	add(uplink, "192.0.2.3/32", "uplink:mote")
	add(link, "192.0.2.4/32", "fifteen:mote")
	count := func(link netlink.Link) int {
		present, err := netlink.AddrList(link, netlink.FAMILY_V4)
		require.NoError(t, err)
		return len(present)
	}
	for _, want := range [][]netip.Addr{{netip.MustParseAddr("192.0.2.129")}, nil} {
		require.NoError(t, keepAddresses(&linkAddresses{long, want}))
		require.Equal(t, 2+len(want), count(link))
		require.Equal(t, 4, count(uplink))
	}
	require.NoError(t, keepAddresses(&linkAddresses{long, []netip.Addr{netip.MustParseAddr("192.0.2.129")}}))
	require.NoError(t, keepAddresses(nil))
	require.Equal(t, 2, count(link))
	require.Equal(t, 3, count(uplink), "what a mote with another interface left goes")
}

// TestFormerLabelsGo checks that addresses that an early mote left on the pods' bridge are removed,
// and only there.
func TestFormerLabelsGo(t *testing.T) {
	inNamespace(t)
	a, b := netip.MustParseAddr("192.0.2.129"), netip.MustParseAddr("192.0.2.130")
	link, uplink := addLink(t, "mote0", "10.42.0.1/24"), addLink(t, "uplink", "198.51.100.1/24")
	for _, on := range []netlink.Link{link, uplink} {
		for _, address := range []netip.Addr{a, b} {
			parsed, err := netlink.ParseAddr(address.String() + "/32")
			require.NoError(t, err)
			parsed.Label = on.Attrs().Name + ":lb"
			require.NoError(t, netlink.AddrAdd(on, parsed))
		}
	}
	require.NoError(t, keepAddresses(&linkAddresses{"mote0", []netip.Addr{a}}))
	labels := func(link netlink.Link) (labels []string) {
		present, err := netlink.AddrList(link, netlink.FAMILY_V4)
		require.NoError(t, err)
		for _, p := range present[1:] {
			labels = append(labels, p.IP.String()+" "+p.Label)
		}
		return labels
	}
	require.Equal(t, []string{"192.0.2.129 mote0:mote"}, labels(link))
	require.Len(t, labels(uplink), 2)
}

func TestLostSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []*subscription
		calls, changes := 0, 0
		stop, err := watchAddresses(func() (*subscription, error) {
			if calls++; calls == 2 {
				return nil, errors.New("no")
			}
			s := &subscription{make(chan netlink.AddrUpdate), make(chan netlink.RouteUpdate), make(chan struct{})}
			told = append(told, s)
			if calls > 1 {
				go func() { <-s.done; close(s.addresses) }()
			}
			go func() { <-s.done; close(s.routes) }()
			return s, nil
		}, func() { changes++ })
		require.NoError(t, err)
		close(told[0].addresses)
		time.Sleep(3 * subscribeAgain)
		synctest.Wait()
		require.Equal(t, 3, calls)
		require.Equal(t, 1, changes, "for what was not heard")
		told[1].routes <- netlink.RouteUpdate{}
		told[1].addresses <- netlink.AddrUpdate{LinkAddress: net.IPNet{IP: net.IPv4(192, 0, 2, 1)}}
		synctest.Wait()
		require.Equal(t, 3, changes)
		stop()
	})
}

func TestSubscriptionEnds(t *testing.T) {
	inNamespace(t)
	s, err := subscribe()
	require.NoError(t, err)
	addLink(t, "mote0", "10.42.0.1/24")
	require.Equal(t, "10.42.0.1", (<-s.addresses).LinkAddress.IP.String())
	s.close()
}

func TestListening(t *testing.T) {
	inNamespace(t)
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
	tcp, err := net.Listen("tcp4", ":8022")
	require.NoError(t, err)
	defer tcp.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:8053")
	require.NoError(t, err)
	defer udp.Close()
	got, err := listening()
	require.NoError(t, err)
	const who = "a program of this machine"
	require.ElementsMatch(t, []use{
		{netip.IPv4Unspecified(), corev1.ProtocolTCP, 8022, who}, {netip.MustParseAddr("127.0.0.1"), corev1.ProtocolUDP, 8053, who},
	}, got)
}
