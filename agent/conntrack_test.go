package agent

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// connection returns a conntrack entry of a client that sends to port 5000 of the host. The entry
// translates the destination to a pod.
func connection(protocol uint8, pod string) *netlink.ConntrackFlow {
	return &netlink.ConntrackFlow{
		FamilyType: syscall.AF_INET,
		TimeOut:    100,
		Forward:    netlink.IPTuple{SrcIP: net.IP{192, 0, 2, 1}, DstIP: net.IP{192, 0, 2, 2}, SrcPort: 4000, DstPort: 5000, Protocol: protocol},
		Reverse:    netlink.IPTuple{SrcIP: net.ParseIP(pod).To4(), DstIP: net.IP{192, 0, 2, 1}, SrcPort: 53, DstPort: 4000, Protocol: protocol},
	}
}

// TestConnectionsToRemovedPodsAreForgotten uses a kernel's real table. Only UDP connections may go:
// a TCP connection may belong to a pod that has the address now.
func TestConnectionsToRemovedPodsAreForgotten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // and never unlock: the thread is in a network namespace of its own
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	for i, pod := range []string{"10.42.0.5", "10.42.0.6", "10.42.0.7"} {
		flow := connection(syscall.IPPROTO_UDP, pod)
		flow.Forward.SrcPort += uint16(i)
		flow.Reverse.DstPort += uint16(i)
		require.NoError(t, netlink.ConntrackCreate(netlink.ConntrackTable, syscall.AF_INET, flow))
	}
	gone := make(chan netip.Addr, maxGone)
	gone <- netip.MustParseAddr("10.42.0.5")
	gone <- netip.MustParseAddr("10.42.0.7")
	close(gone)
	flushGone(gone, nil)
	left, err := netlink.ConntrackTableList(netlink.ConntrackTable, syscall.AF_INET)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "10.42.0.6", left[0].Reverse.SrcIP.String())

	require.False(t, stale{netip.MustParseAddr("10.42.0.5"): true}.MatchConntrackFlow(connection(syscall.IPPROTO_TCP, "10.42.0.5")))
}
