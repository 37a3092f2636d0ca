package netcheck

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/mote-k8s/mote/agent"
)

// The hints name the places where each path is usually blocked.
const (
	hintPods = "look for packet rules that are not mote's (nft list ruleset, iptables-save) and drop what comes from or goes to pods"
	hintHost = hintPods + "; a firewall that guards the node's own ports must let pods in"
	hintRule = "see \"mote status\" and \"mote logs --component kube-proxy\"; another program may have flushed kube-proxy's rules " +
		"(nft list tables, iptables-save -t nat): start mote again to have them back"
	hintDNS = "see \"mote status\" and the events of \"mote kubectl describe configmap coredns -n kube-system\"; if other " +
		"Services do not answer either, look at those lines first; a firewall that guards the node's own ports must let pods in"
	hintUpstream = "names outside the cluster do not resolve, the cluster's own do; name a server in /etc/resolv.conf, " +
		"or after \"forward\" in the ConfigMap coredns of kube-system"
)

// probes returns the probes in an order in which the packets of each use the paths before it. A
// probe that needs pods is skipped with the reason missing, unless that is "".
func (b *bed) probes(ctx context.Context, apiserver, missing string) []probe {
	noProxy := ""
	if !b.OwnProxy {
		noProxy = "--proxy=none: Services are not mote's"
	}
	needsBoth := missing
	if needsBoth == "" {
		needsBoth = noProxy
	}
	server, client := b.pods[serverPod], b.pods[clientPod]
	direct := address(server.address, port)
	var service, nodePort string
	if missing == "" {
		service = address(b.service.Spec.ClusterIP, port)
		nodePort = address(b.nodeIP, int(b.service.Spec.Ports[0].NodePort))
	}
	noDNS := b.noDNS(ctx)
	if noDNS == "" {
		noDNS = noProxy
	}
	noPodDNS := noDNS
	if noPodDNS == "" {
		noPodDNS = missing
	}
	return []probe{
		{name: "node to pod", skip: missing, try: echo("", direct), hint: hintPods},
		{name: "pod to pod", skip: missing, try: echo(client.network, direct), hint: hintPods},
		{name: "node to Service", skip: needsBoth, try: echo("", service), hint: hintRule},
		{name: "pod to Service", skip: needsBoth, try: echo(client.network, service), hint: hintRule},
		{name: "pod to itself by Service", skip: needsBoth, try: echo(server.network, service), hint: hintRule},
		{name: "node to NodePort", skip: needsBoth, try: echo("", nodePort), hint: hintRule},
		{name: "pod to NodePort", skip: needsBoth, try: echo(client.network, nodePort), hint: hintHost},
		{name: "pod to apiserver", skip: needsBoth, try: b.handshake(client.network, address(apiserver, 443)), hint: hintHost},
		{name: "DNS from node", skip: noDNS, try: b.resolve("", apiserver), hint: hintDNS},
		{name: "DNS from pod", skip: noPodDNS, try: b.resolve(client.network, apiserver), hint: hintDNS},
		{name: "DNS upstream", skip: noDNS, try: b.upstream(), hint: hintUpstream, otherwise: agent.StateWarn},
	}
}

func address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// noDNS returns the reason to skip DNS, or "".
func (b *bed) noDNS(ctx context.Context) string {
	if b.OwnDNS {
		return ""
	}
	services, err := b.client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err == nil && slices.ContainsFunc(services.Items, func(s corev1.Service) bool { return s.Spec.ClusterIP == b.ClusterDNS.String() }) {
		return ""
	}
	return "--disable=dns, and no Service of yours has the address " + b.ClusterDNS.String()
}

// echo sends more than one packet holds, so that full packets go both ways, and expects it back.
func echo(network, address string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		sent := make([]byte, 16<<10)
		rand.Read(sent)
		received := make([]byte, len(sent))
		conn, err := connect(ctx, network, address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if _, err := conn.Write(sent); err != nil {
			return "", fmt.Errorf("cannot send 16 KiB to %s: %w", address, err)
		}
		if _, err := io.ReadFull(conn, received); err != nil {
			return "", fmt.Errorf("cannot get 16 KiB back from %s, to which a connection opens: %w", address, err)
		}
		if !bytes.Equal(sent, received) {
			return "", fmt.Errorf("cannot reach the check's pod on %s: somebody else answers there", address)
		}
		return address + " answers", nil
	}
}

func connect(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = within(network, func() error {
		d := net.Dialer{Timeout: attemptTimeout}
		if conn, err = d.DialContext(ctx, "tcp", address); err != nil {
			return fmt.Errorf("cannot connect: %w", err)
		}
		return conn.SetDeadline(time.Now().Add(attemptTimeout))
	})
	return conn, err
}

// handshake makes a TLS connection to the apiserver by its Service, and accepts no other server.
func (b *bed) handshake(network, address string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		config, err := serverTLS(b.Access)
		if err != nil {
			return "", err
		}
		conn, err := connect(ctx, network, address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if err := tls.Client(conn, config).HandshakeContext(ctx); err != nil {
			return "", fmt.Errorf("cannot speak TLS with the apiserver on %s: %w", address, err)
		}
		return address + " answers as kubernetes.default", nil
	}
}

// serverTLS trusts only the cluster's certificate authority.
func serverTLS(access *rest.Config) (*tls.Config, error) {
	pem := access.CAData
	if len(pem) == 0 {
		var err error
		if pem, err = os.ReadFile(access.CAFile); err != nil {
			return nil, fmt.Errorf("read the cluster's authority: %w", err)
		}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("cannot use the cluster's authority: the kubeconfig holds no certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: "kubernetes.default.svc"}, nil
}

// resolve asks for the name of the apiserver's Service, by UDP and by TCP.
func (b *bed) resolve(network, want string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		name := "kubernetes.default.svc." + b.ClusterDomain
		for _, transport := range []string{"udp", "tcp"} {
			answer, err := b.ask(ctx, network, transport, name, dns.TypeA)
			if err != nil {
				return "", err
			}
			if !slices.ContainsFunc(answer.Answer, func(r dns.RR) bool {
				a, ok := r.(*dns.A)
				return ok && a.A.String() == want
			}) {
				return "", fmt.Errorf("DNS on %s does not know %s as %s, by %s: %s",
					b.ClusterDNS, name, want, transport, dns.RcodeToString[answer.Rcode])
			}
		}
		return fmt.Sprintf("%s knows %s, by UDP and TCP", b.ClusterDNS, name), nil
	}
}

// upstream asks for the servers of the DNS root. Every resolver that reaches the internet, or
// imitates it, knows them.
func (b *bed) upstream() func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		answer, err := b.ask(ctx, "", "udp", "", dns.TypeNS)
		if err != nil {
			return "", err
		}
		if answer.Rcode != dns.RcodeSuccess {
			return "", fmt.Errorf("no resolver outside the cluster answers (%s)", dns.RcodeToString[answer.Rcode])
		}
		return "a resolver outside the cluster answers", nil
	}
}

func (b *bed) ask(ctx context.Context, network, transport, name string, kind uint16) (answer *dns.Msg, err error) {
	err = within(network, func() error {
		client := dns.Client{Net: transport, Timeout: attemptTimeout}
		question := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
		if answer, _, err = client.ExchangeContext(ctx, question, address(b.ClusterDNS.String(), 53)); err != nil {
			return fmt.Errorf("cannot ask DNS on %s by %s: %w", b.ClusterDNS, transport, err)
		}
		return nil
	})
	return answer, err
}
