package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/mote-k8s/mote/internal/limit"
)

// maxGone is the number of addresses that may wait to be flushed. By default a node's network has
// that many.
const maxGone = 256

// flushGone ends the connections of removed pods until the channel of their addresses is closed:
// those from the pods to mote's ports (limit.Budgets.EndFrom), and the kernel's UDP connections to
// them.
//
// A UDP connection keeps the translation of its first packet. A client that goes on sending to a
// host port, without a pause of 30 seconds, would reach the address of the removed pod for ever,
// even if another pod has the port now. The CNI plugin portmap flushes such connections only when
// it adds a pod with a host port, and it adds no pods of the host's network
// (containernetworking/plugins#1190). kube-proxy does the same for Services.
func flushGone(gone <-chan netip.Addr, budgets *limit.Budgets) {
	for address := range gone {
		filter := stale{address: true}
		for more := true; more; { // one walk through the kernel's table for all addresses removed by now
			select {
			case address, open := <-gone:
				if more = open; open {
					filter[address] = true
				}
			default:
				more = false
			}
		}
		if ended := budgets.EndFrom(filter); ended > 0 {
			slog.Debug("ended connections of removed pods", "component", "network", "connections", ended)
		}
		count, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(syscall.AF_INET), filter)
		if err != nil && !errors.Is(err, syscall.ENOENT) { // ENOENT: the connection ended meanwhile
			slog.Warn("cannot forget UDP connections to removed pods: who goes on to send to one of their host ports may not reach who has it now",
				"component", "network", "err", err)
		} else if count > 0 {
			slog.Debug("forgot UDP connections to removed pods", "component", "network", "connections", count)
		}
	}
}

// stale matches UDP connections whose answers come from one of its addresses.
type stale map[netip.Addr]bool

var _ netlink.CustomConntrackFilter = stale(nil)

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	address, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return ok && flow.Forward.Protocol == syscall.IPPROTO_UDP && s[address.Unmap()]
}
