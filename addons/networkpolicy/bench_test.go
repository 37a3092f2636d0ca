package networkpolicy

import (
	"fmt"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/stretchr/testify/require"
)

// crowd returns a cluster of 1,000 pods and 200 policies in 10 namespaces. Each policy selects a
// tenth of its namespace and admits a tenth of all pods.
func crowd() state {
	const namespaces, pods, policies = 10, 100, 20
	s := state{family: familyOf(netip.MustParseAddr(nodeIP)), bridge: bridge, namespaces: make(map[string]labels.Set)}
	for n := range namespaces {
		namespace := fmt.Sprintf("ns-%d", n)
		s.namespaces[namespace] = labels.Set{"kubernetes.io/metadata.name": namespace}
		for i := range pods {
			s.pods = append(s.pods, &pod{
				namespace: namespace, here: true, labels: labels.Set{"app": fmt.Sprintf("app-%d", i%10), "pod": fmt.Sprint(i)},
				addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, byte(n), byte(i + 2)})},
				ports:     []namedPort{{"http", "tcp", 8080}},
			})
		}
		for i := range policies {
			app := func(n int) labels.Selector {
				return labels.SelectorFromSet(labels.Set{"app": fmt.Sprintf("app-%d", n%10)})
			}
			s.policies = append(s.policies, &policy{
				namespace: namespace, name: fmt.Sprintf("policy-%d", i), subjects: app(i),
				ingress: &direction{rules: []admission{{
					peers: []peer{{labels.Everything(), app(i + 1)}, {nil, labels.Everything()}},
					ports: []port{{protocol: "tcp", name: "http"}, {protocol: "udp", span: span[int32]{53, 53}}},
				}}},
			})
		}
	}
	return s
}

// BenchmarkChange measures one change in a crowd, from the known state to the rules in the kernel.
func BenchmarkChange(b *testing.B) {
	full := crowd()
	drop := func(s *state) { s.pods = s.pods[1:] }
	open := func(s *state) { s.policies = s.policies[1:] }
	for _, c := range []struct {
		name   string
		change func(*state)
	}{{"nothing", func(*state) {}}, {"pod", drop}, {"policy", open}} {
		b.Run(c.name, func(b *testing.B) {
			rules := benchRules(b)
			changed := full
			c.change(&changed)
			require.NoError(b, rules.write(b.Context(), compile(full)))
			for i := 0; b.Loop(); i++ {
				next := &changed
				if i%2 == 1 {
					next = &full
				}
				require.NoError(b, rules.write(b.Context(), compile(*next)))
			}
		})
	}
	b.Run("all", func(b *testing.B) {
		rules := benchRules(b)
		for b.Loop() {
			rules.written = nil
			require.NoError(b, rules.write(b.Context(), compile(full)))
		}
	})
	b.Run("compile", func(b *testing.B) {
		for b.Loop() {
			compile(full)
		}
	})
}
