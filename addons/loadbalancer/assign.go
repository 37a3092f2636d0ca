package loadbalancer

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// use is a port of this machine that is in use.
type use struct {
	address  netip.Addr // not valid means every address
	protocol corev1.Protocol
	port     int32
	who      string
}

// machine describes the addresses and ports that Services can get.
type machine struct {
	node  netip.Addr
	pool  netip.Prefix
	taken []use
}

// grant is the result for a Service: an address, or the reason why it gets none.
type grant struct {
	address netip.Addr
	problem string
}

// ours reports whether a Service wants an address from mote: it names no other implementation.
func ours(s *corev1.Service) bool {
	class := s.Spec.LoadBalancerClass
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && (class == nil || *class == Class) && s.DeletionTimestamp == nil
}

// assign decides for all wanted Services at once. A Service that has an address keeps it. Among the
// others, the oldest comes first.
func assign(services []*corev1.Service, m machine, wanted func(*corev1.Service) bool) map[types.UID]grant {
	services = slices.Clone(services)
	slices.SortFunc(services, func(a, b *corev1.Service) int {
		if has(a) != has(b) {
			if has(a) {
				return -1
			}
			return 1
		}
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	a := assigner{machine: m, services: services, given: make(map[types.UID]grant)}
	for _, s := range services {
		if wanted(s) {
			a.given[s.UID] = a.grant(s)
		}
	}
	return a.given
}

func has(s *corev1.Service) bool { return len(s.Status.LoadBalancer.Ingress) > 0 }

type assigner struct {
	machine
	services []*corev1.Service
	given    map[types.UID]grant
}

func (a *assigner) grant(s *corev1.Service) grant {
	if !a.pool.IsValid() {
		if wish := s.Spec.LoadBalancerIP; wish != "" && wish != a.node.String() {
			return grant{problem: fmt.Sprintf("the address %s cannot be had: without --load-balancer-pool there is the node's %s", wish, a.node)}
		}
		if who := a.inTheWay(s, a.node); who != "" {
			return grant{problem: who}
		}
		return grant{address: a.node}
	}
	for _, wish := range []string{s.Spec.LoadBalancerIP, current(s)} {
		address, err := netip.ParseAddr(wish)
		switch {
		case err != nil:
		case a.pool.Contains(address) && a.free(address):
			return grant{address: address}
		case wish == s.Spec.LoadBalancerIP:
			return grant{problem: fmt.Sprintf("the address %s cannot be had: it is not free in the pool %s", wish, a.pool)}
		}
	}
	for address := a.pool.Addr(); a.pool.Contains(address); address = address.Next() {
		if a.usable(address) && a.free(address) {
			return grant{address: address}
		}
	}
	return grant{problem: fmt.Sprintf("the pool %s has no address left; delete a Service or set a larger --load-balancer-pool", a.pool)}
}

func current(s *corev1.Service) string {
	if !has(s) {
		return ""
	}
	return s.Status.LoadBalancer.Ingress[0].IP
}

// usable excludes the network's own address and the broadcast address, if the pool has them.
func (a *assigner) usable(address netip.Addr) bool {
	return a.pool.Bits() >= address.BitLen()-1 || address != a.pool.Masked().Addr() && a.pool.Contains(address.Next())
}

// free reports whether no Service has an address. Services that have one are processed first.
func (a *assigner) free(address netip.Addr) bool {
	for _, g := range a.given {
		if g.address == address {
			return false
		}
	}
	return true
}

// inTheWay returns the owner of one of the Service's ports on the node's address. The Service keeps
// the ports that it already has, even if a program listens there or a Service gets one as a node
// port later.
func (a *assigner) inTheWay(s *corev1.Service, address netip.Addr) string {
	for _, p := range s.Spec.Ports {
		held := holds(s, address, p)
		for _, other := range a.services {
			if other.UID == s.UID {
				continue
			}
			g := a.given[other.UID]
			for _, op := range other.Spec.Ports {
				if op.Protocol == p.Protocol && (g.address == address && op.Port == p.Port || op.NodePort == p.Port && !held) {
					return fmt.Sprintf("port %d/%s of %s belongs to the Service %s/%s", p.Port, p.Protocol, address, other.Namespace, other.Name)
				}
			}
		}
		if held {
			continue
		}
		for _, u := range a.taken {
			// Compare with ports on any address of the machine: two owners of one port are
			// confusing, and the address may change.
			if u.protocol == p.Protocol && u.port == p.Port && !u.address.IsLoopback() {
				return fmt.Sprintf("port %d/%s of %s is in use by %s; choose another port", p.Port, p.Protocol, address, u.who)
			}
		}
	}
	return ""
}

func holds(s *corev1.Service, address netip.Addr, p corev1.ServicePort) bool {
	return slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool {
		return i.IP == address.String() && slices.ContainsFunc(i.Ports, func(had corev1.PortStatus) bool {
			return had.Port == p.Port && had.Protocol == p.Protocol
		})
	})
}

// status returns a grant in the form of a Service's status. It includes the ports, which show what
// the Service holds.
func (g grant) status(s *corev1.Service) []corev1.LoadBalancerIngress {
	if !g.address.IsValid() {
		return nil
	}
	i := corev1.LoadBalancerIngress{IP: g.address.String()}
	for _, p := range s.Spec.Ports {
		i.Ports = append(i.Ports, corev1.PortStatus{Port: p.Port, Protocol: p.Protocol})
	}
	return []corev1.LoadBalancerIngress{i}
}

func sameIngress(a, b []corev1.LoadBalancerIngress) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.LoadBalancerIngress) bool {
		return x.IP == y.IP && slices.EqualFunc(x.Ports, y.Ports, func(p, q corev1.PortStatus) bool {
			return p.Port == q.Port && p.Protocol == q.Protocol
		})
	})
}

// hostPorts returns the ports of the machine that a pod uses.
func hostPorts(p *corev1.Pod) []use {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	var uses []use
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		for _, port := range c.Ports {
			if port.HostPort == 0 || p.Spec.HostNetwork { // a pod on the host's network listens itself
				continue
			}
			address, _ := netip.ParseAddr(port.HostIP)
			uses = append(uses, use{address, port.Protocol, port.HostPort, "the pod " + p.Namespace + "/" + p.Name})
		}
	}
	return uses
}
