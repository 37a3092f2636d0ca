package e2e

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/mote-k8s/mote/test/cluster"
)

// balanced is a Service in front of pod web, which answers with the client's address.
const balanced = `
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: red}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{name: control, port: %d, targetPort: 9000}]
  %s
`

// TestAddonLoadBalancer reaches Services from a machine beside the node: on the node's address and
// on an address of a pool.
func TestAddonLoadBalancer(t *testing.T) {
	l := newPolicyLab(t, cluster.NewHost(t, cluster.HostConfig{}))
	for _, step := range []struct {
		name string
		run  func(*testing.T, *policyLab)
	}{
		{"node's address", testBalancerNode},
		{"ports in use", testBalancerPorts},
		{"source ranges", testBalancerSources},
		{"client's address", testBalancerClient},
		{"released", testBalancerReleased},
		{"pool", testBalancerPool},
		{"off and on", testBalancerOffAndOn},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(t, l) })
	}
}

func (l *policyLab) balance(t *testing.T, name string, port int, more string) {
	t.Helper()
	l.h.Apply(t, fmt.Sprintf(balanced, name, port, more))
}

// waitAddress waits for the addresses of a Service.
func (l *policyLab) waitAddress(t *testing.T, name, want string) {
	t.Helper()
	l.h.WaitKubectl(t, inForce, func(out string) bool { return out == want },
		"get", "service", "-n", "red", name, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
}

func (l *policyLab) waitRefused(t *testing.T, name, why string) {
	t.Helper()
	l.h.WaitKubectl(t, inForce, func(out string) bool { return strings.Contains(out, why) }, "get", "events", "-n", "red",
		"--field-selector", "reason=AddressRefused,involvedObject.name="+name, "-o", "jsonpath={.items[*].message}")
}

// fetch waits until the machine outside gets an answer for which accept returns true.
func (l *policyLab) fetch(t *testing.T, page string, accept func(answer string) bool) {
	t.Helper()
	cluster.Wait(t, inForce, page, func() error {
		answer, err := l.ask("outside", "/fetch?"+url.Values{"url": {page}}.Encode())
		if err == nil && !accept(answer) {
			err = fmt.Errorf("the answer is %q", answer)
		}
		return err
	})
}

func is(want string) func(string) bool { return func(answer string) bool { return answer == want } }

func unreached(answer string) bool { return strings.Contains(answer, "Client.Timeout") }

func testBalancerNode(t *testing.T, l *policyLab) {
	l.balance(t, "one", 8090, "")
	l.waitAddress(t, "one", "192.0.2.1")
	l.fetch(t, "http://192.0.2.1:8090/healthz", is("ok"))
}

func testBalancerPorts(t *testing.T, l *policyLab) {
	for name, c := range map[string]struct {
		port int
		why  string
	}{
		"same":      {8090, "port 8090/TCP of 192.0.2.1 belongs to the Service red/one"},
		"apiserver": {6443, "port 6443/TCP of 192.0.2.1 is in use"},
		"kubelet":   {10250, "port 10250/TCP of 192.0.2.1 is in use"},
		"nodeport":  {30080, "port 30080/TCP of 192.0.2.1 belongs to the Service red/web"},
	} {
		l.balance(t, name, c.port, "")
		l.waitRefused(t, name, c.why)
		l.waitAddress(t, name, "")
	}
	// The Service that waits gets the port when it is free.
	l.h.Kubectl(t, "delete", "service", "-n", "red", "one", "apiserver", "kubelet", "nodeport")
	l.waitAddress(t, "same", "192.0.2.1")
	l.fetch(t, "http://192.0.2.1:8090/healthz", is("ok"))
}

func testBalancerSources(t *testing.T, l *policyLab) {
	l.balance(t, "ranged", 8091, "loadBalancerSourceRanges: [198.51.100.0/24]")
	l.waitAddress(t, "ranged", "192.0.2.1")
	l.fetch(t, "http://192.0.2.1:8091/healthz", unreached)
	l.balance(t, "ranged", 8091, "loadBalancerSourceRanges: [192.0.2.0/24]")
	l.fetch(t, "http://192.0.2.1:8091/healthz", is("ok"))
}

func testBalancerClient(t *testing.T, l *policyLab) {
	l.balance(t, "local", 8092, "externalTrafficPolicy: Local")
	l.waitAddress(t, "local", "192.0.2.1")
	l.fetch(t, "http://192.0.2.1:8092/client", is("192.0.2.2"))
	port := l.h.Kubectl(t, "get", "service", "-n", "red", "local", "-o", "jsonpath={.spec.healthCheckNodePort}")
	l.fetch(t, "http://192.0.2.1:"+port+"/healthz", func(answer string) bool { return strings.Contains(answer, `"localEndpoints": 1`) })
}

func testBalancerReleased(t *testing.T, l *policyLab) {
	l.h.Kubectl(t, "patch", "service", "-n", "red", "local", "-p", `{"spec": {"type": "ClusterIP", "externalTrafficPolicy": null}}`)
	l.waitAddress(t, "local", "")
	l.fetch(t, "http://192.0.2.1:8092/client", func(answer string) bool { return answer != "192.0.2.2" })
	l.h.Kubectl(t, "delete", "service", "-n", "red", "local", "ranged", "same")
	l.fetch(t, "http://192.0.2.1:8091/healthz", func(answer string) bool { return answer != "ok" })
}

func (l *policyLab) restart(t *testing.T, args ...string) {
	t.Helper()
	l.h.Run(t, "mote", "stop")
	l.s.WaitEnd(t, cluster.StopTimeout)
	l.s = l.h.StartServer(l.t, args...)
	l.s.WaitReady(t)
}

func testBalancerPool(t *testing.T, l *policyLab) {
	l.restart(t, "--load-balancer-pool=192.0.2.128/30")
	for i, name := range []string{"a", "b"} {
		l.balance(t, name, 22, "")
		l.waitAddress(t, name, fmt.Sprintf("192.0.2.%d", 129+i))
		l.fetch(t, fmt.Sprintf("http://192.0.2.%d:22/healthz", 129+i), is("ok"))
	}
	l.balance(t, "c", 22, "")
	l.waitRefused(t, "c", "the pool 192.0.2.128/30 has no address left")
	waitTrouble(t, l.h, "loadbalancer: Service red/c: the pool 192.0.2.128/30 has no address left", true)
	l.h.Kubectl(t, "delete", "service", "-n", "red", "a")
	l.waitAddress(t, "c", "192.0.2.129")
	waitTrouble(t, l.h, "Service red/c", false)
	l.fetch(t, "http://192.0.2.129:22/healthz", is("ok"))
}

func testBalancerOffAndOn(t *testing.T, l *policyLab) {
	l.restart(t, "--disable=loadbalancer")
	l.waitAddress(t, "b", "")
	cluster.Wait(t, inForce, "nothing of the pool", func() error { // the statuses are removed first
		if addresses := l.h.Run(t, "ip", "-o", "addr"); strings.Contains(addresses, "192.0.2.1") && strings.Contains(addresses, ":mote") {
			return fmt.Errorf("left: %s", addresses)
		}
		return nil
	})
	l.restart(t)
	l.waitAddress(t, "b", "192.0.2.1")
	l.fetch(t, "http://192.0.2.1:22/healthz", is("ok"))
}
