package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

//go:embed testdata/ingress.yaml
var ingressManifest string

// ingressLab is the lab of policies with Ingresses. The machine outside reaches them at the node's
// address.
type ingressLab struct {
	*policyLab
	roots *x509.CertPool // of the hosts' certificates
}

const (
	ingressIP = "192.0.2.1"
	// cutTimeout is the time in which the ingress must end open connections that a policy forbids:
	// 20 s, and 5 s for a new one.
	cutTimeout = time.Minute
)

// TestAddonIngress sends HTTP, WebSockets and gRPC through Ingresses, from the machine itself and
// from one beside it.
func TestAddonIngress(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	l := &ingressLab{policyLab: newPolicyLab(t, h, program(t, images.ProxiedName, "./test/images/proxied")), roots: x509.NewCertPool()}
	l.secret(t, "shop", "shop.test")
	l.secret(t, "rpc", "rpc.test")
	h.Apply(t, ingressManifest)
	h.Kubectl(t, "rollout", "status", "-n", "red", "deployment/proxied", "--timeout="+podTimeout.String())
	l.waitIngress(t, "shop", ingressIP)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *ingressLab)
	}{
		{"hosts with TLS", testIngressTLS},
		{"client's address", testIngressClient},
		{"WebSocket", testIngressWebSocket},
		{"gRPC", testIngressGRPC},
		{"reload under load", testIngressReload},
		{"policies", testIngressPolicies},
		{"missing secret", testIngressMissingSecret},
		{"ports", testIngressPorts},
		{"off and on", testIngressOffAndOn},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(t, l) })
	}
}

// secret creates the Secret of a host, whose certificate the lab's clients trust.
func (l *ingressLab) secret(t *testing.T, name, host string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{host}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	rawKey, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	l.roots.AppendCertsFromPEM(certificate)
	secrets := l.client.CoreV1().Secrets("red")
	made := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSCertKey:       certificate,
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: rawKey}),
	}}
	if _, err = secrets.Create(t.Context(), made, metav1.CreateOptions{}); err != nil {
		_, err = secrets.Update(t.Context(), made, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// waitIngress waits for the address of an Ingress.
func (l *ingressLab) waitIngress(t *testing.T, name, want string) {
	t.Helper()
	l.h.WaitKubectl(t, inForce, func(out string) bool { return out == want },
		"get", "ingress", "-n", "red", name, "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}")
}

// waitIngressEvent waits for a warning on an Ingress, and for the same warning in mote's status.
func (l *ingressLab) waitIngressEvent(t *testing.T, name, reason, text string) {
	t.Helper()
	l.h.WaitKubectl(t, inForce, func(out string) bool { return strings.Contains(out, text) }, "get", "events", "-n", "red",
		"--field-selector", "type=Warning,reason="+reason+",involvedObject.name="+name, "-o", "jsonpath={.items[*].message}")
	if status := l.h.Run(t, "mote", "status"); !strings.Contains(status, "ingress: Ingress red/"+name) || !strings.Contains(status, text) {
		t.Errorf("mote status says nothing of %q:\n%s", text, status)
	}
}

// dial connects to the node, whatever the host in the address is.
func (l *ingressLab) dial(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	return l.h.Dial(ctx, network, net.JoinHostPort(ingressIP, port))
}

// browser returns a client that connects to the node for all hosts, and trusts their current
// certificates. Each client has its own pool: nothing may be added to a pool while a client reads
// it.
func (l *ingressLab) browser(t *testing.T) *http.Client {
	transport := &http.Transport{DialContext: l.dial, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: l.roots.Clone()}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: 30 * time.Second, Transport: transport}
}

func browse(client *http.Client, page string) (string, error) {
	response, err := client.Get(page)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return strings.TrimSpace(string(body)), err
}

// waitPage waits until accept returns true for a page. Each try has a connection of its own: a
// connection that kube-proxy has routed to a pod stays there when the port goes to another Service.
func (l *ingressLab) waitPage(t *testing.T, page string, accept func(answer string, err error) bool) {
	t.Helper()
	l.waitPageFor(t, inForce, page, accept)
}

func (l *ingressLab) waitPageFor(t *testing.T, timeout time.Duration, page string, accept func(answer string, err error) bool) {
	t.Helper()
	client := l.browser(t)
	cluster.Wait(t, timeout, page, func() error {
		defer client.CloseIdleConnections()
		answer, err := browse(client, page)
		if !accept(answer, err) {
			return fmt.Errorf("the answer is %q, %v", answer, err)
		}
		return nil
	})
}

func answers(want string) func(string, error) bool {
	return func(answer string, err error) bool { return err == nil && answer == want }
}

func fails(want string) func(string, error) bool {
	return func(_ string, err error) bool { return err != nil && strings.Contains(err.Error(), want) }
}

func testIngressTLS(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "two hosts with TLS, each with its certificate, by SNI; the status address")
	for _, page := range []string{"https://shop.test/", "https://rpc.test/any", "http://shop.test/"} {
		l.waitPage(t, page, answers("proxied"))
	}
	l.waitPage(t, "http://unknown.test/healthz", answers("ok")) // the default backend
	l.waitPage(t, "https://unknown.test/healthz", fails("certificate"))
}

func testIngressClient(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "the backend learns the client's address")
	l.fetch(t, "http://"+ingressIP+"/headers", func(answer string) bool {
		return strings.Contains(answer, "X-Forwarded-For: 192.0.2.2\r") && strings.Contains(answer, "X-Forwarded-Proto: http\r")
	})
}

func testIngressWebSocket(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "WebSocket, whose connection outlives changes")
	dialer := &websocket.Dialer{NetDialContext: l.dial, TLSClientConfig: &tls.Config{RootCAs: l.roots}, HandshakeTimeout: inForce}
	conn, _, err := dialer.DialContext(t.Context(), "wss://shop.test/echo", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	echo := func(text string) {
		t.Helper()
		if err := conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.ReadMessage(); err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	echo("before")
	const patch = `{"spec": {"rules": [{"host": "other.test", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "proxied", "port": {"number": 80}}}}]}}]}}`
	l.h.Kubectl(t, "patch", "ingress", "-n", "red", "shop", "--type=merge", "-p", patch)
	l.waitPage(t, "http://shop.test/", fails("404"))
	echo("after")
	l.h.Apply(t, ingressManifest)
	l.waitPage(t, "http://shop.test/", answers("proxied"))
}

func testIngressGRPC(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "gRPC, with TLS and without, calls and streams")
	for target, c := range map[string]credentials.TransportCredentials{
		"rpc.test:443": credentials.NewTLS(&tls.Config{RootCAs: l.roots}), "rpc.test:80": insecure.NewCredentials(),
	} {
		conn, err := grpc.NewClient("passthrough:///"+target, grpc.WithTransportCredentials(c),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return l.dial(ctx, "tcp", address) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		health := grpc_health_v1.NewHealthClient(conn)
		answer, err := health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Fatalf("%s: %v, %v", target, answer, err)
		}
		stream, err := health.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			answer, err = stream.Recv()
		}
		if err != nil || answer.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Fatalf("%s: %v, %v", target, answer, err)
		}
		if _, err = health.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "none"}); !strings.Contains(fmt.Sprint(err), "NotFound") {
			t.Errorf("the status in the trailers is lost: %v", err)
		}
	}
}

// testIngressReload sends requests to two hosts all the time, while certificates, rules and all
// pods are replaced.
func testIngressReload(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "certificates, rules and pods are replaced under load, and no request fails")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var asked atomic.Int64
	var askers sync.WaitGroup
	for _, page := range []string{"https://shop.test/", "https://rpc.test/", "http://shop.test/", "http://rpc.test/"} {
		client := l.browser(t)
		askers.Go(func() {
			for ctx.Err() == nil {
				if answer, err := browse(client, page); err != nil || answer != "proxied" {
					t.Errorf("%s: %q, %v", page, answer, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	defer askers.Wait()
	defer stop()
	l.h.Kubectl(t, "rollout", "restart", "-n", "red", "deployment/proxied")
	for round := range 5 {
		before := asked.Load()
		host := fmt.Sprintf("h%d.test", round)
		l.h.Kubectl(t, "create", "ingress", "-n", "red", fmt.Sprintf("h%d", round), "--rule="+host+"/*=proxied:80")
		l.waitPage(t, "http://"+host+"/", answers("proxied"))
		if err := l.client.CoreV1().Secrets("red").Delete(t.Context(), "spare", metav1.DeleteOptions{}); round > 0 && err != nil {
			t.Fatal(err)
		}
		l.secret(t, "spare", host)
		cluster.Wait(t, inForce, "requests", func() error {
			if n := asked.Load() - before; n < 20 {
				return fmt.Errorf("%d so far", n)
			}
			return nil
		})
	}
	l.h.Kubectl(t, "rollout", "status", "-n", "red", "deployment/proxied", "--timeout="+podTimeout.String())
	l.h.Kubectl(t, "delete", "ingress", "-n", "red", "h0", "h1", "h2", "h3", "h4")
	l.waitPage(t, "http://h0.test/x", fails("404"))
	t.Logf("%d requests", asked.Load())
}

// testIngressPolicies checks that policies treat traffic through the ingress as traffic from a pod
// of kube-system.
func testIngressPolicies(t *testing.T, l *ingressLab) {
	features.Row(t, "D7", "what comes through the ingress is judged as traffic from outside")
	const page = "http://any.test/healthz"
	l.apply(t, denyWeb)
	l.waitPageFor(t, cutTimeout, page, fails("504"))
	l.waitPage(t, "http://shop.test/", answers("proxied"))
	for _, c := range []struct {
		peer     string
		admitted bool
	}{
		{`ipBlock: {cidr: 10.42.0.1/32}`, true},
		{`ipBlock: {cidr: 192.0.2.0/24}`, false}, // the client's own address is not visible
		{`namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app.kubernetes.io/name: ingress}}`, true},
	} {
		l.apply(t, `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{`+c.peer+`}]}]}`)
		if c.admitted {
			l.waitPage(t, page, answers("ok"))
		} else {
			l.waitPageFor(t, cutTimeout, page, fails("504"))
		}
	}
	l.apply(t)
	l.waitPage(t, page, answers("ok"))
}

func testIngressMissingSecret(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "a missing Secret and a missing Service are named by events; other hosts go on")
	l.h.Kubectl(t, "create", "ingress", "-n", "red", "lost", "--rule=lost.test/*=nowhere:80,tls=lost")
	l.waitIngressEvent(t, "lost", "SecretUnusable", "the Secret lost of spec.tls cannot be used: it is not there")
	l.waitIngressEvent(t, "lost", "BackendUnusable", "the Service nowhere is not there")
	l.waitPage(t, "http://lost.test/", fails("503"))
	l.waitPage(t, "https://lost.test/", fails("certificate"))
	l.waitPage(t, "https://shop.test/", answers("proxied"))
	l.secret(t, "lost", "lost.test")
	l.waitPage(t, "https://lost.test/", fails("503"))
	l.h.Kubectl(t, "delete", "ingress", "-n", "red", "lost")
	cluster.Wait(t, inForce, "mote status without trouble", func() error {
		if status := l.h.Run(t, "mote", "status"); strings.Contains(status, "red/lost") {
			return fmt.Errorf("%s", status)
		}
		return nil
	})
}

// testIngressPorts checks that neither the load balancer nor the ingress takes the other's ports.
func testIngressPorts(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "a port that is taken: an event, and the others go on")
	l.balance(t, "late", 80, "")
	l.waitRefused(t, "late", "port 80/TCP of 192.0.2.1 is in use by")
	// Without an Ingress the port is free for other Services.
	l.h.Kubectl(t, "delete", "ingress", "-n", "red", "--all")
	l.waitAddress(t, "late", ingressIP)
	l.fetch(t, "http://"+ingressIP+"/healthz", is("ok"))
	l.h.Apply(t, ingressManifest)
	l.waitIngressEvent(t, "shop", "PortInUse", "port 80 of the node belongs to the Service red/late; delete that, or set --ingress-http-port")
	l.waitPage(t, "https://shop.test/", answers("proxied"))
	l.fetch(t, "http://"+ingressIP+"/client", func(answer string) bool { return answer != "" && !strings.Contains(answer, "404") })
	l.h.Kubectl(t, "delete", "service", "-n", "red", "late")
	l.waitPage(t, "http://shop.test/", answers("proxied"))
}

func testIngressOffAndOn(t *testing.T, l *ingressLab) {
	features.Row(t, "D6", "off and on leaves nothing and doubles nothing")
	l.restart(t, "--disable=ingress")
	l.waitIngress(t, "shop", "")
	l.h.WaitKubectl(t, inForce, func(out string) bool { return out == "" }, "get", "ingressclass", "-o", "name")
	l.waitPage(t, "http://shop.test/", fails("refused"))
	l.restart(t, "--ingress-http-port=8080", "--ingress-https-port=8443")
	l.waitIngress(t, "shop", ingressIP)
	l.waitPage(t, "http://shop.test:8080/", answers("proxied"))
	l.waitPage(t, "https://shop.test:8443/", answers("proxied"))
	if classes := l.h.Kubectl(t, "get", "ingressclass", "-o", "name"); strings.TrimSpace(classes) != "ingressclass.networking.k8s.io/mote" {
		t.Errorf("classes: %s", classes)
	}
}
