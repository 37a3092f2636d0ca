package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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
	// stockDNSPort is where CoreDNS as a program of its own listens on the node's address.
	stockDNSPort = 10153
	// saturation is how many queries are under way when as many as possible are asked for, and saturated how long.
	saturation = 64
	saturated  = 4 * time.Second
	// pacedRate queries are sent each second for paced, over pacedSockets sockets.
	pacedRate, pacedSockets = 5000, 8
	paced                   = 5 * time.Second
	// lateAnswer is when an answer counts as lost.
	lateAnswer = 2 * time.Second
)

// dnsPart compares the cluster's DNS server with the same version of CoreDNS as a program of its own, asked in the
// same way: from a pod, through a Service.
func dnsPart() addonPart {
	return addonPart{name: "dns", inside: measureDNS, figures: []addonFigure{
		{what: "DNS queries a second from one pod; beside it CoreDNS as a program", format: "%.0f", mote: "qps", other: "stock qps", percentile: 50, budget: 20_000, atLeast: true},
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
	servers := []struct{ prefix, address string }{{"", clusterDNS + ":53"}, {"stock ", address + ":53"}}
	for _, s := range servers {
		if err := pod.awaitDNS(ctx, s.address); err != nil {
			return fmt.Errorf("wait for the server at %s: %w", s.address, err)
		}
	}
	for round := range a.Rounds {
		for i := range servers {
			s := servers[(i+round)%len(servers)] // who comes first has no advantage
			answered, err := pod.saturate(s.address)
			if err != nil {
				return err
			}
			a.add(s.prefix+"qps", float64(answered)/saturated.Seconds())
			times, lost, err := pod.pace(s.address)
			if err != nil {
				return err
			}
			a.add(s.prefix+"p50", times.median())
			a.add(s.prefix+"p99", times.percentile(99))
			a.add(s.prefix+"lost", float64(lost))
		}
	}
	return ctx.Err()
}

// startStockDNS starts CoreDNS beside mote, with the plugins of the default Corefile, and returns the address of its
// Service.
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

// insidePod opens sockets in a running pod's network namespace. Sockets stay in it, whoever uses them.
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

// question is a query for a Service's address, as it is sent; the first two bytes are its number.
func question() ([]byte, error) {
	return new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA).Pack()
}

func setNumber(query []byte, number uint16) { query[0], query[1] = byte(number>>8), byte(number) }

// answered reads one answer and checks that it is one.
func answered(conn *net.UDPConn, buffer []byte) (number uint16, err error) {
	n, err := conn.Read(buffer)
	if err != nil {
		return 0, err
	}
	if n < 12 || buffer[3]&0xf != dns.RcodeSuccess || buffer[7] == 0 {
		return 0, errors.New("the server does not know the name")
	}
	return uint16(buffer[0])<<8 | uint16(buffer[1]), nil
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
		_, err = answered(conns[0], make([]byte, dns.MinMsgSize))
		return err
	})
}

// saturate asks as fast as answers come and counts these.
func (p insidePod) saturate(address string) (int64, error) {
	conns, err := p.dial(address, saturation)
	if err != nil {
		return 0, err
	}
	defer closeAll(conns)
	var count atomic.Int64
	var asking sync.WaitGroup
	errs := make([]error, len(conns))
	end := time.Now().Add(saturated)
	for i, conn := range conns {
		query, err := question()
		if err != nil {
			return 0, err
		}
		if err := conn.SetDeadline(end.Add(lateAnswer)); err != nil {
			return 0, err
		}
		asking.Go(func() {
			buffer := make([]byte, dns.MinMsgSize)
			for number := uint16(0); time.Now().Before(end); number++ {
				setNumber(query, number)
				if _, errs[i] = conn.Write(query); errs[i] == nil {
					_, errs[i] = answered(conn, buffer)
				}
				if errs[i] != nil {
					return
				}
				count.Add(1)
			}
		})
	}
	asking.Wait()
	return count.Load(), errors.Join(errs...)
}

// pace asks at a steady rate whether answers come or not, and returns how long each took in milliseconds.
func (p insidePod) pace(address string) (times sample, lost int, err error) {
	conns, err := p.dial(address, pacedSockets)
	if err != nil {
		return nil, 0, err
	}
	defer closeAll(conns)
	total := int(paced.Seconds() * pacedRate)
	each := total / len(conns)
	sent := make([][]atomic.Int64, len(conns)) // when, by the query's number
	took := make([]sample, len(conns))
	begin := time.Now()
	var reading sync.WaitGroup
	for i, conn := range conns {
		sent[i] = make([]atomic.Int64, each)
		if err := conn.SetReadDeadline(begin.Add(paced + lateAnswer)); err != nil {
			return nil, 0, err
		}
		reading.Go(func() {
			buffer := make([]byte, dns.MinMsgSize)
			for len(took[i]) < each {
				number, err := answered(conn, buffer)
				if err != nil {
					return // the rest is lost
				}
				since := time.Since(begin) - time.Duration(sent[i][number].Load())
				took[i] = append(took[i], float64(since)/float64(time.Millisecond))
			}
		})
	}
	query, err := question()
	if err != nil {
		return nil, 0, err
	}
	for n := range each * len(conns) {
		time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / pacedRate)))
		i, number := n%len(conns), n/len(conns)
		setNumber(query, uint16(number))
		sent[i][number].Store(int64(time.Since(begin)))
		if _, err := conns[i].Write(query); err != nil {
			return nil, 0, err
		}
	}
	reading.Wait()
	for _, t := range took {
		times = append(times, t...)
	}
	return times, each*len(conns) - len(times), nil
}
