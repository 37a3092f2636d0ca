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

// labelSuffix ends the label of the pool's addresses ("mote0:mote"), by which they are found again.
const labelSuffix = ":mote"

// formerSuffix ended it before v0.1.0.
const formerSuffix = ":lb"

// labelOn is the label of the pool's addresses on an interface. The kernel takes 15 characters, and renames in the same
// way: the interface's name is cut.
func labelOn(link string) string {
	return link[:min(len(link), unix.IFNAMSIZ-1-len(labelSuffix))] + labelSuffix
}

// loopback is everybody's: an address with a former label may be anybody's.
const loopback = "lo"

// linkAddresses are the pool's addresses that Services have, on an interface.
type linkAddresses struct {
	link      string
	addresses []netip.Addr
}

// keepAddresses makes these the only ones of the pool that their interface has; nil removes those of every interface.
// Others' addresses stay. The kernel answers ARP for them on every interface.
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
			continue // and its addresses with it
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

// NodeAddress is the machine's address towards others: that of the interface with the default route, or of the first
// one that is not the pods'.
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

// subscribeAgain is between attempts to hear from the kernel again.
const subscribeAgain = time.Second

// subscription is what the kernel tells until done is closed. Before that, a channel is closed when the kernel had
// more to tell than there was room for.
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

// close waits for the end.
func (s *subscription) close() {
	close(s.done)
	for range s.addresses {
	}
	for range s.routes {
	}
}

// follow calls change until a channel or stopped is closed, and closes the subscription.
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
			if u.LinkAddress.IP.To4() != nil { // pods' interfaces get others all the time
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

// WatchAddresses calls change when the machine's IPv4 addresses or routes change, or may have changed unheard. stop
// ends it.
func WatchAddresses(change func()) (stop func(), err error) { return watchAddresses(subscribe, change) }

// watchAddresses is given a way to hear from the kernel.
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
