package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// clusterDNS is mote's default.
	clusterDNS = "10.43.0.10"
	// moteDNSPort is the port of mote's server on the node's address.
	moteDNSPort = 10053
	// stockDNSPort is the port of CoreDNS, as a separate program, on the node's address.
	stockDNSPort = 10153
)

// dnsPart compares the cluster's DNS server with the same version of CoreDNS as a separate program.
// Both get the same queries: from a pod, through a Service.
func dnsPart() addonPart {
	return addonPart{name: "dns", inside: measureDNS, figures: []addonFigure{
		{what: "DNS queries a second from one pod; beside it CoreDNS as a program", format: "%.0f", mote: "qps", other: "stock qps", percentile: 50, budget: 20_000, atLeast: true},
		{what: "the same past the Service, at the server's own address", format: "%.0f", mote: "past qps", other: "stock past qps", percentile: 50},
		{what: "processor time of the server for a query", format: "%.1f µs", mote: "query cpu", other: "stock query cpu", percentile: 50},
		{what: fmt.Sprintf("time of a query, p50 of %d a second", pacedRate), format: "%.2f ms", mote: "p50", other: "stock p50", percentile: 50},
		{what: fmt.Sprintf("time of a query, p99 of %d a second", pacedRate), format: "%.2f ms", mote: "p99", other: "stock p99", percentile: 50, budget: 2},
		{what: "queries without an answer", format: "%.0f", mote: "lost", other: "stock lost", percentile: 100},
	}}
}

func measureDNS(ctx context.Context, a *addonRoom) error {
	pod, err := a.runInside(ctx, "client")
	if err != nil {
		return err
	}
	address, err := a.startStockDNS(ctx)
	if err != nil {
		return err
	}
	servers := []struct{ prefix, address, process string }{
		{"", clusterDNS + ":53", "mote"}, {"stock ", address + ":53", "coredns"},
		{"past ", nodeAddress + ":" + strconv.Itoa(moteDNSPort), "mote"},
		{"stock past ", nodeAddress + ":" + strconv.Itoa(stockDNSPort), "coredns"},
	}
	for _, s := range servers {
		if err := pod.awaitDNS(ctx, s.address); err != nil {
			return fmt.Errorf("wait for the server at %s: %w", s.address, err)
		}
		if _, err := pod.saturate(s.address); err != nil { // not counted: mote has only just started
			return fmt.Errorf("ask %s: %w", s.address, err)
		}
	}
	for round := range a.Rounds {
		for i := range servers {
			s := servers[(i+round)%len(servers)] // alternate, so that the order gives no server an advantage
			if err := a.measureQueries(pod, s.prefix, s.address, s.process); err != nil {
				return fmt.Errorf("ask %s: %w", s.address, err)
			}
		}
	}
	return ctx.Err()
}

// measureQueries sends queries to the server at address. process is the name of its process.
func (a *addonRoom) measureQueries(pod insidePod, prefix, address, process string) error {
	before, err := cpuOf(process)
	if err != nil {
		return err
	}
	answered, err := pod.saturate(address)
	if err != nil {
		return err
	}
	after, err := cpuOf(process)
	if err != nil {
		return err
	}
	a.add(prefix+"qps", float64(answered)/saturated.Seconds())
	a.add(prefix+"query cpu", float64((after-before).Microseconds())/float64(answered))
	times, lost, err := pod.pace(address)
	if err != nil {
		return err
	}
	a.add(prefix+"p50", times.median())
	a.add(prefix+"p99", times.percentile(99))
	a.add(prefix+"lost", float64(lost))
	return nil
}

// cpuOf returns the processor time of the cluster's process of that name.
func cpuOf(name string) (time.Duration, error) {
	all, err := clusterProcesses()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.Name == name {
			return p.CPU, nil
		}
	}
	return 0, fmt.Errorf("there is no process %s", name)
}

// startStockDNS starts CoreDNS beside mote, with the plugins of the default Corefile, and returns
// the address of its Service.
func (a *addonRoom) startStockDNS(ctx context.Context) (string, error) {
	corefile := a.path("Corefile")
	text := fmt.Sprintf(`.:%d {
    bind %s
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig %s
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    prometheus %[2]s:9253
    cache 30 {
        disable success cluster.local
        disable denial cluster.local
    }
    loadbalance
}
`, stockDNSPort, nodeAddress, a.kubeconfig)
	if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
		return "", err
	}
	if err := a.programs.start("coredns", nil, filepath.Join(a.Stock, "coredns"), "-conf", corefile); err != nil {
		return "", err
	}
	const name = "stock-dns"
	udp, port, portName := corev1.ProtocolUDP, int32(stockDNSPort), "dns"
	service, err := a.client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: portName, Protocol: udp, Port: 53}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	_, err = a.client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{nodeAddress}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Protocol: &udp, Port: &port}},
	}, metav1.CreateOptions{})
	return service.Spec.ClusterIP, err
}

// insidePod opens sockets in a running pod's network namespace. A socket stays in it, whichever
// thread uses it.
type insidePod struct{ namespace string }

// runInside runs a pod of the bench's image and finds its network namespace.
func (a *addonRoom) runInside(ctx context.Context, name string) (insidePod, error) {
	if _, err := a.client.runPod(ctx, name); err != nil {
		return insidePod{}, err
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return insidePod{}, err
	}
	for _, file := range names {
		if comm, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(comm)) == appName {
			return insidePod{filepath.Join(filepath.Dir(file), "ns/net")}, nil
		}
	}
	return insidePod{}, fmt.Errorf("find the process of pod %s: there is no %s", name, appName)
}

// dial opens UDP sockets to address.
func (p insidePod) dial(address string, number int) ([]*net.UDPConn, error) {
	type opened struct {
		conns []*net.UDPConn
		err   error
	}
	done := make(chan opened)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		var o opened
		namespace, err := os.Open(p.namespace)
		if err == nil {
			defer namespace.Close()
			err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)
		}
		for range number {
			if err != nil {
				break
			}
			var conn net.Conn
			if conn, err = net.Dial("udp4", address); err == nil {
				o.conns = append(o.conns, conn.(*net.UDPConn))
			}
		}
		o.err = err
		done <- o
	}()
	o := <-done
	if o.err != nil {
		closeAll(o.conns)
		return nil, fmt.Errorf("open sockets in a pod: %w", o.err)
	}
	return o.conns, nil
}

func closeAll(conns []*net.UDPConn) {
	for _, c := range conns {
		c.Close()
	}
}

func (p insidePod) awaitDNS(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	query, err := question()
	if err != nil {
		return err
	}
	return poll(ctx, func() error {
		conns, err := p.dial(address, 1)
		if err != nil {
			return err
		}
		defer closeAll(conns)
		if err := conns[0].SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := conns[0].Write(query); err != nil {
			return err
		}
		buffer := make([]byte, dns.MinMsgSize)
		n, err := conns[0].Read(buffer)
		if err == nil {
			_, err = checkAnswer(buffer[:n])
		}
		return err
	})
}
