package loadbalancer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/mote-k8s/mote/internal/host"
)

// labelSuffix ends the label of the pool's addresses ("mote0:mote"). mote finds its addresses by
// the label.
const labelSuffix = ":mote"

// formerSuffix was the suffix before v0.1.0.
const formerSuffix = ":lb"

// labelOn returns the label of the pool's addresses on an interface. The kernel accepts 15
// characters, and cuts the interface's name in the same way when it renames an interface.
func labelOn(link string) string {
	return link[:min(len(link), unix.IFNAMSIZ-1-len(labelSuffix))] + labelSuffix
}

// loopback is shared by all programs: an address with a former label there may belong to any of
// them.
const loopback = "lo"

// linkAddresses holds the addresses of the pool that Services have, on an interface.
type linkAddresses struct {
	link      string
	addresses []netip.Addr
}

// keepAddresses makes these the only addresses of the pool on their interface. With nil it removes
// the pool's addresses from every interface. Addresses of other programs stay. The kernel answers
// ARP for the pool's addresses on every interface.
func keepAddresses(want *linkAddresses) error {
	present, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	had := make(map[netip.Addr]bool)
	for _, a := range present {
		address, ok := netip.AddrFromSlice(a.IP.To4())
		former := want != nil && want.link != loopback && a.Label == want.link+formerSuffix
		if !ok || !former && !strings.HasSuffix(a.Label, labelSuffix) {
			continue
		}
		link, err := netlink.LinkByIndex(a.LinkIndex)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue // the interface is gone, and so are its addresses
		}
		if err != nil {
			return fmt.Errorf("find the interface of %s: %w", address, err)
		}
		name := link.Attrs().Name
		if !former && a.Label != labelOn(name) || want != nil && want.link != name {
			continue
		}
		if want != nil && !former && slices.Contains(want.addresses, address) {
			had[address] = true
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("remove the address %s: %w", address, err)
		}
	}
	if want == nil || len(want.addresses) == len(had) {
		return nil
	}
	link, err := netlink.LinkByName(want.link)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", want.link, err)
	}
	for _, address := range want.addresses {
		one := &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(address.BitLen(), address.BitLen())}
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: one, Label: labelOn(want.link)}); err != nil {
			return fmt.Errorf("add the address %s: %w", address, err)
		}
	}
	return nil
}

// NodeAddress returns the machine's address towards other machines: that of the interface with the
// default route, or else of the first interface other than the pods'.
func NodeAddress(pods string, otherwise netip.Addr) (netip.Addr, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list routes: %w", err)
	}
	uplink, best := 0, 0
	for _, r := range routes {
		if (r.Dst == nil || r.Dst.IP.IsUnspecified()) && r.LinkIndex != 0 && (uplink == 0 || r.Priority < best) {
			uplink, best = r.LinkIndex, r.Priority
		}
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses: %w", err)
	}
	found := otherwise
	for _, a := range addresses {
		address, ok := netip.AddrFromSlice(a.IP.To4())
		if !ok || !address.IsGlobalUnicast() || a.Label == pods || strings.HasSuffix(a.Label, labelSuffix) {
			continue
		}
		if a.LinkIndex == uplink {
			return address, nil
		}
		if found == otherwise {
			found = address
		}
	}
	return found, nil
}

// subscribeAgain is the wait between attempts to subscribe to the kernel's messages again.
const subscribeAgain = time.Second

// subscription receives messages from the kernel until done is closed. A channel is closed earlier
// if the kernel had more messages than there was room for.
type subscription struct {
	addresses chan netlink.AddrUpdate
	routes    chan netlink.RouteUpdate
	done      chan struct{}
}

func subscribe() (*subscription, error) {
	s := &subscription{make(chan netlink.AddrUpdate), make(chan netlink.RouteUpdate), make(chan struct{})}
	if err := netlink.AddrSubscribe(s.addresses, s.done); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	if err := netlink.RouteSubscribe(s.routes, s.done); err != nil {
		close(s.routes)
		s.close()
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	return s, nil
}

// close ends the subscription and waits for its end.
func (s *subscription) close() {
	close(s.done)
	for range s.addresses {
	}
	for range s.routes {
	}
}

// follow calls change until a channel or stopped is closed. Then it closes the subscription.
func (s *subscription) follow(change func(), stopped <-chan struct{}) {
	defer s.close()
	for {
		select {
		case <-stopped:
			return
		case u, ok := <-s.addresses:
			if !ok {
				return
			}
			if u.LinkAddress.IP.To4() != nil { // pods' interfaces get IPv6 addresses all the time
				change()
			}
		case u, ok := <-s.routes:
			if !ok {
				return
			}
			if u.Dst == nil || u.Dst.IP.IsUnspecified() {
				change()
			}
		}
	}
}

// WatchAddresses calls change when the machine's IPv4 addresses or routes change, or may have
// changed while messages were lost. stop ends it.
func WatchAddresses(change func()) (stop func(), err error) { return watchAddresses(subscribe, change) }

// watchAddresses does the work of WatchAddresses with a given function to subscribe to the kernel.
func watchAddresses(subscribe func() (*subscription, error), change func()) (stop func(), err error) {
	s, err := subscribe()
	if err != nil {
		return nil, err
	}
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if s != nil {
				s.follow(change, stopped)
			}
			select {
			case <-stopped:
				return
			case <-time.After(subscribeAgain):
			}
			var err error
			if s, err = subscribe(); err == nil {
				change()
			}
		}
	}()
	return func() { close(stopped); <-ended }, nil
}

// listening returns the ports that programs of this machine listen on.
func listening() ([]use, error) {
	sockets, err := host.Sockets()
	if err != nil {
		return nil, err
	}
	uses := make([]use, len(sockets))
	for i, s := range sockets {
		uses[i] = use{s.Addr.Addr(), corev1.ProtocolTCP, int32(s.Addr.Port()), "a program of this machine"}
		if s.UDP {
			uses[i].protocol = corev1.ProtocolUDP
		}
	}
	return uses, nil
}
