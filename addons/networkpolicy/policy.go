package networkpolicy

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"
)

// policy is a NetworkPolicy in the form that compile needs.
type policy struct {
	namespace, name string
	subjects        labels.Selector
	// ingress and egress hold the traffic that the policy admits. A pod is isolated in the
	// directions that are not nil. An empty direction isolates it from everybody.
	ingress, egress *direction
}

func (p *policy) key() string { return p.namespace + "/" + p.name }

type direction struct{ rules []admission }

// admission is one rule of a policy. It admits any of the peers on any of the ports.
type admission struct {
	anyPeer bool
	peers   []peer
	blocks  []span[netip.Addr] // disjoint
	anyPort bool
	ports   []port
}

// peer selects pods.
type peer struct {
	namespaces labels.Selector // nil means the policy's own namespace
	pods       labels.Selector
}

// port is a range, a name, or the whole protocol if both are empty.
type port struct {
	protocol string
	span     span[int32]
	name     string
}

func (p port) whole() bool { return p.name == "" && p.span.last == 0 }

// parse converts a policy. A part that cannot be enforced admits no peer, and problems names it. A
// policy lists the permitted peers: it is safe to read it too narrowly, and dangerous to read it
// too widely.
func parse(np *networkingv1.NetworkPolicy, f family) (p *policy, problems []string) {
	p = &policy{namespace: np.Namespace, name: np.Name}
	var err error
	if p.subjects, err = metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
		// The pods that the policy protects are not known. Isolating the whole namespace would cut
		// off pods that the policy does not select.
		return nil, []string{fmt.Sprintf("spec.podSelector: %v; the policy is not in force", err)}
	}
	ingress, egress := isolates(np.Spec)
	if ingress {
		p.ingress = &direction{}
		for i, r := range np.Spec.Ingress {
			a, wrong := parseRule(r.From, r.Ports, f)
			p.ingress.rules = append(p.ingress.rules, a)
			problems = append(problems, within(fmt.Sprintf("spec.ingress[%d]", i), wrong)...)
		}
	}
	if egress {
		p.egress = &direction{}
		for i, r := range np.Spec.Egress {
			a, wrong := parseRule(r.To, r.Ports, f)
			p.egress.rules = append(p.egress.rules, a)
			problems = append(problems, within(fmt.Sprintf("spec.egress[%d]", i), wrong)...)
		}
	}
	return p, problems
}

func within(path string, problems []string) []string {
	for i, problem := range problems {
		problems[i] = path + problem
	}
	return problems
}

// isolates reports the directions that a policy covers.
func isolates(spec networkingv1.NetworkPolicySpec) (ingress, egress bool) {
	if len(spec.PolicyTypes) == 0 {
		return true, len(spec.Egress) > 0
	}
	for _, t := range spec.PolicyTypes {
		ingress = ingress || t == networkingv1.PolicyTypeIngress
		egress = egress || t == networkingv1.PolicyTypeEgress
	}
	return ingress, egress
}

func parseRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, f family) (admission, []string) {
	a := admission{anyPeer: len(peers) == 0, anyPort: len(ports) == 0}
	var problems []string
	for i, p := range peers {
		problem := ""
		if p.IPBlock != nil {
			problem = a.addBlock(p.IPBlock, f)
		} else {
			problem = a.addPeer(p)
		}
		if problem != "" {
			problems = append(problems, fmt.Sprintf(", peer %d: %s", i, problem))
		}
	}
	a.blocks = mergeAddresses(a.blocks)
	for i, p := range ports {
		if problem := a.addPort(p); problem != "" {
			problems = append(problems, fmt.Sprintf(", port %d: %s", i, problem))
		}
	}
	return a, problems
}

func (a *admission) addPeer(p networkingv1.NetworkPolicyPeer) (problem string) {
	selected := peer{pods: labels.Everything()}
	var err error
	if p.PodSelector != nil {
		if selected.pods, err = metav1.LabelSelectorAsSelector(p.PodSelector); err != nil {
			return fmt.Sprintf("podSelector: %v; it admits nobody", err)
		}
	}
	if p.NamespaceSelector != nil {
		if selected.namespaces, err = metav1.LabelSelectorAsSelector(p.NamespaceSelector); err != nil {
			return fmt.Sprintf("namespaceSelector: %v; it admits nobody", err)
		}
	}
	a.peers = append(a.peers, selected)
	return ""
}

func (a *admission) addBlock(b *networkingv1.IPBlock, f family) (problem string) {
	whole, err := parseCIDR(b.CIDR)
	if err != nil {
		return fmt.Sprintf("ipBlock: %v; it admits nobody", err)
	}
	if !f.has(whole.Addr()) {
		return fmt.Sprintf("ipBlock %s is of no effect: pods have no address of its family", b.CIDR)
	}
	var except []netip.Prefix
	for _, text := range b.Except {
		e, err := parseCIDR(text)
		if err != nil {
			return fmt.Sprintf("ipBlock.except: %v; the block admits nobody", err)
		}
		if f.has(e.Addr()) {
			except = append(except, e)
		}
	}
	a.blocks = append(a.blocks, without(whole, except)...)
	return ""
}

// parseCIDR accepts the same texts as the API. Objects of older versions may have leading zeros.
func parseCIDR(text string) (netip.Prefix, error) {
	_, network, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is not a network", text)
	}
	addr, ok := netip.AddrFromSlice(network.IP)
	bits, _ := network.Mask.Size()
	if !ok {
		return netip.Prefix{}, fmt.Errorf("%q is not a network", text)
	}
	return netip.PrefixFrom(addr, bits), nil
}

func (a *admission) addPort(p networkingv1.NetworkPolicyPort) (problem string) {
	added := port{protocol: "tcp"}
	if p.Protocol != nil {
		switch *p.Protocol {
		case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
			added.protocol = strings.ToLower(string(*p.Protocol))
		default:
			return fmt.Sprintf("protocol %s is unknown; it admits nothing", *p.Protocol)
		}
	}
	switch {
	case p.Port == nil:
	case p.Port.Type == intstr.String:
		if wrong := validation.IsValidPortName(p.Port.StrVal); len(wrong) > 0 {
			return fmt.Sprintf("name %q: %s; it admits nothing", p.Port.StrVal, strings.Join(wrong, ", "))
		}
		added.name = p.Port.StrVal
	default:
		added.span = span[int32]{p.Port.IntVal, p.Port.IntVal}
		if p.EndPort != nil {
			added.span.last = *p.EndPort
		}
		if added.span.first < 1 || added.span.last > 65535 || added.span.last < added.span.first {
			return fmt.Sprintf("range %s is none; it admits nothing", added.span)
		}
	}
	a.ports = append(a.ports, added)
	return ""
}
