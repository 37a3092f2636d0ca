package loadbalancer

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// balanced returns a Service with TCP ports. A smaller age makes it older.
func balanced(name string, age int, ports ...int32) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: name, UID: types.UID(name), CreationTimestamp: metav1.Time{Time: time.Unix(int64(age), 0)},
	}}
	s.Spec.Type = corev1.ServiceTypeLoadBalancer
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Protocol: corev1.ProtocolTCP, Port: p})
	}
	return s
}

// holding returns a Service that already has an address.
func holding(s *corev1.Service, address string) *corev1.Service {
	s.Status.LoadBalancer.Ingress = grant{address: netip.MustParseAddr(address)}.status(s)
	return s
}

func nodePort(s *corev1.Service, port int32) *corev1.Service {
	s.Spec.Ports[0].NodePort = port
	return s
}

func TestAssign(t *testing.T) {
	const node = "192.0.2.1"
	class, mine := "example.com/other", Class
	other, named := balanced("class", 1, 80), balanced("a", 1, 80)
	other.Spec.LoadBalancerClass, named.Spec.LoadBalancerClass = &class, &mine
	udp := balanced("udp", 3, 80)
	udp.Spec.Ports[0].Protocol = corev1.ProtocolUDP
	wish := balanced("wish", 9, 80)
	wish.Spec.LoadBalancerIP = "192.0.2.131"
	cluster := balanced("cluster", 1, 80)
	cluster.Spec.Type = corev1.ServiceTypeClusterIP
	taken := []use{
		{netip.MustParseAddr("0.0.0.0"), corev1.ProtocolTCP, 22, "sshd"},
		{netip.MustParseAddr("10.42.0.1"), corev1.ProtocolTCP, 10250, "the kubelet"},
		{netip.MustParseAddr("127.0.0.1"), corev1.ProtocolTCP, 10248, "a local program"},
		{netip.Addr{}, corev1.ProtocolUDP, 53, "a pod"},
	}
	for _, c := range []struct {
		name     string
		pool     string
		services []*corev1.Service
		want     string // NAME=ADDRESS, or the beginning of the problem
	}{
		{"the node's", "", []*corev1.Service{balanced("a", 1, 80), balanced("b", 2, 443)}, "a=192.0.2.1 b=192.0.2.1"},
		{"protocols differ", "", []*corev1.Service{balanced("a", 1, 80), udp}, "a=192.0.2.1 udp=192.0.2.1"},
		{"the oldest first", "", []*corev1.Service{balanced("b", 2, 80), balanced("a", 1, 443, 80)}, "a=192.0.2.1 b=port 80/TCP of 192.0.2.1 belongs to the Service ns/a"},
		{"who has it keeps it", "", []*corev1.Service{balanced("a", 1, 80), holding(balanced("b", 2, 80), node)}, "a=port 80/TCP of 192.0.2.1 belongs to the Service ns/b b=192.0.2.1"},
		{"ports of the machine", "", []*corev1.Service{balanced("a", 1, 22), balanced("b", 1, 10250), balanced("c", 1, 10248)},
			"a=port 22/TCP of 192.0.2.1 is in use by sshd; choose another port b=port 10250/TCP of 192.0.2.1 is in use by the kubelet; choose another port c=192.0.2.1"},
		{"a program that came later", "", []*corev1.Service{holding(balanced("a", 1, 22), node)}, "a=192.0.2.1"},
		{"a new port of who has others", "", []*corev1.Service{func() *corev1.Service {
			s := holding(balanced("a", 1, 80), node)
			s.Spec.Ports[0].Port = 22
			return s
		}()}, "a=port 22/TCP of 192.0.2.1 is in use by sshd; choose another port"},
		{"another's node port", "", []*corev1.Service{nodePort(balanced("a", 1, 80), 30080), balanced("b", 2, 30080)}, "a=192.0.2.1 b=port 30080/TCP of 192.0.2.1 belongs to the Service ns/a"},
		{"another's node port that came later", "", []*corev1.Service{holding(balanced("a", 2, 30080), node), nodePort(balanced("b", 1, 80), 30080)}, "a=192.0.2.1 b=192.0.2.1"},
		{"other classes and types", "", []*corev1.Service{other, cluster}, ""},
		{"our class", "", []*corev1.Service{named}, "a=192.0.2.1"},
		{"a wish without a pool", "", []*corev1.Service{wish}, "wish=the address 192.0.2.131 cannot be had: without --load-balancer-pool there is the node's 192.0.2.1"},
		{"pool", "192.0.2.128/29", []*corev1.Service{balanced("a", 1, 80), balanced("b", 2, 80), balanced("c", 3, 22)}, "a=192.0.2.129 b=192.0.2.130 c=192.0.2.131"},
		{"wish", "192.0.2.128/29", []*corev1.Service{wish, balanced("b", 2, 80)}, "b=192.0.2.129 wish=192.0.2.131"},
		{"wish outside", "192.0.3.0/24", []*corev1.Service{wish}, "wish=the address 192.0.2.131 cannot be had: it is not free in the pool 192.0.3.0/24"},
		{"kept in the pool", "192.0.2.128/29", []*corev1.Service{balanced("a", 1, 80), holding(balanced("b", 2, 80), "192.0.2.129")}, "a=192.0.2.130 b=192.0.2.129"},
		{"the pool has changed", "192.0.3.0/24", []*corev1.Service{holding(balanced("b", 2, 80), "192.0.2.129")}, "b=192.0.3.1"},
		{"empty pool", "192.0.2.128/30", []*corev1.Service{balanced("a", 1, 80), balanced("b", 2, 80), balanced("c", 3, 80)},
			"a=192.0.2.129 b=192.0.2.130 c=the pool 192.0.2.128/30 has no address left; delete a Service or set a larger --load-balancer-pool"},
		{"pool of one", "192.0.2.128/32", []*corev1.Service{balanced("a", 1, 80)}, "a=192.0.2.128"},
	} {
		m := machine{node: netip.MustParseAddr(node), taken: taken}
		if c.pool != "" {
			m.pool = netip.MustParsePrefix(c.pool)
		}
		given := assign(c.services, m, ours)
		var got []string
		for _, name := range []string{"a", "b", "c", "udp", "class", "cluster", "wish"} {
			if g, ok := given[types.UID(name)]; ok && g.problem != "" {
				got = append(got, fmt.Sprintf("%s=%s", name, g.problem))
			} else if ok {
				got = append(got, fmt.Sprintf("%s=%s", name, g.address))
			}
		}
		require.Equal(t, c.want, strings.Join(got, " "), c.name)
	}
}

func TestHostPorts(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{
		{ContainerPort: 1}, {ContainerPort: 2, HostPort: 80, Protocol: corev1.ProtocolTCP},
	}}}
	require.Equal(t, []use{{netip.Addr{}, corev1.ProtocolTCP, 80, "the pod ns/p"}}, hostPorts(p))
	p.Status.Phase = corev1.PodSucceeded
	require.Empty(t, hostPorts(p))
}
