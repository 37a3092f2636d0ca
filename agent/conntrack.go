package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/mote-k8s/mote/internal/limit"
)

// maxGone is how many addresses may wait to be flushed: those of a node's network, by default.
const maxGone = 256

// flushGone ends what is left of pods that are gone, until the channel of their addresses is closed: connections that
// they had to mote's ports (limit.Budgets.EndFrom), and the kernel's UDP connections to their addresses.
//
// A connection keeps the translation of its first packet. Somebody who goes on to send to a host port, without a pause of
// 30 seconds, would reach the address of the removed pod for ever, whoever has the port now. The CNI plugin portmap flushes only
// when a pod with a host port comes, which a pod of the host's network is not (containernetworking/plugins#1190). kube-proxy does
// the same for Services.
func flushGone(gone <-chan netip.Addr, budgets *limit.Budgets) {
	for address := range gone {
		filter := stale{address: true}
		for more := true; more; { // one walk through the kernel's table for all that are gone by now
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
		if err != nil && !errors.Is(err, syscall.ENOENT) { // ended by itself meanwhile
			slog.Warn("cannot forget UDP connections to removed pods: who goes on to send to one of their host ports may not reach who has it now",
				"component", "network", "err", err)
		} else if count > 0 {
			slog.Debug("forgot UDP connections to removed pods", "component", "network", "connections", count)
		}
	}
}

// stale matches UDP connections that are answered by one of its addresses.
type stale map[netip.Addr]bool

var _ netlink.CustomConntrackFilter = stale(nil)

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	address, ok := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return ok && flow.Forward.Protocol == syscall.IPPROTO_UDP && s[address.Unmap()]
}
