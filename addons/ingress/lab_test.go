package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// lab is a proxy on two ports of loopback, in front of a simulated cluster.
type lab struct {
	t        *testing.T
	proxy    *proxy
	compiler compiler
	objects
	servicesBy map[string]*corev1.Service
	slicesBy   map[string][]*discoveryv1.EndpointSlice
	secretsBy  map[string]*corev1.Secret
	http       string // HOST:PORT
	https      string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabWith(t, func(*proxy) {})
}

// newLabWith makes a lab and calls prepare on its proxy before it listens.
func newLabWith(t *testing.T, prepare func(*proxy)) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for the mark of its connections")
	}
	p, err := newProxy(80, 443)
	require.NoError(t, err)
	prepare(p)
	l := &lab{
		t: t, proxy: p, compiler: compiler{proxy: p},
		servicesBy: make(map[string]*corev1.Service), slicesBy: make(map[string][]*discoveryv1.EndpointSlice),
		secretsBy: make(map[string]*corev1.Secret),
	}
	l.service = func(namespace, name string) *corev1.Service { return l.servicesBy[namespace+"/"+name] }
	l.slices = func(namespace, name string) []*discoveryv1.EndpointSlice { return l.slicesBy[namespace+"/"+name] }
	l.secret = func(namespace, name string) *corev1.Secret { return l.secretsBy[namespace+"/"+name] }
	serve := func(secure *tls.Config) string {
		f, err := openFront(t.Context(), 0, secure, p, nil, func(err error) { t.Error(err) })
		require.NoError(t, err)
		t.Cleanup(f.close)
		return "127.0.0.1:" + strconv.Itoa(f.listener.Addr().(*net.TCPAddr).Port)
	}
	l.http, l.https = serve(nil), serve(&tls.Config{GetCertificate: p.getCertificate})
	t.Cleanup(p.transports.close)
	return l
}

// add adds an Ingress. Its age is such that Ingresses added earlier are older.
func (l *lab) add(spec string) *networkingv1.Ingress {
	l.t.Helper()
	n := len(l.ingresses)
	i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: "i" + strconv.Itoa(n), UID: types.UID(strconv.Itoa(n)), CreationTimestamp: metav1.Unix(int64(n), 0),
	}}
	require.NoError(l.t, yaml.UnmarshalStrict([]byte("spec: "+spec), i))
	l.ingresses = append(l.ingresses, i)
	return i
}

// lead makes a Service ns/NAME with the port 80 named web, whose pods are at addresses.
func (l *lab) lead(name, appProtocol string, addresses ...string) *discoveryv1.EndpointSlice {
	port := corev1.ServicePort{Name: "web", Port: 80, Protocol: corev1.ProtocolTCP}
	if appProtocol != "" {
		port.AppProtocol = &appProtocol
	}
	l.servicesBy["ns/"+name] = &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{port}},
	}
	delete(l.slicesBy, "ns/"+name)
	var slice *discoveryv1.EndpointSlice
	for _, address := range addresses {
		at := netip.MustParseAddrPort(address)
		number := int32(at.Port())
		slice = &discoveryv1.EndpointSlice{
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: &port.Name, Port: &number}},
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{at.Addr().String()}}},
		}
		l.slicesBy["ns/"+name] = append(l.slicesBy["ns/"+name], slice)
	}
	return slice
}

// apply activates the objects of the lab, and returns the problems found.
func (l *lab) apply() problems {
	routes, found := l.compiler.compile(l.objects, time.Now())
	l.proxy.routes.Store(routes)
	return found
}

// server starts a backend.
func server(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// says starts a backend that answers text.
func says(t *testing.T, text string) string {
	return server(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })
}

// closedPort returns an address that refuses connections.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}

// client returns a client that connects to the lab for any host in the URL.
func (l *lab) client() *http.Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, l.http)
		},
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(address)
			return (&tls.Dialer{Config: &tls.Config{ServerName: host, InsecureSkipVerify: true}}).DialContext(ctx, network, l.https)
		},
	}
	l.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// secretFor makes a Secret ns/NAME with a certificate for a host.
func (l *lab) secretFor(name, host string) *corev1.Secret {
	l.t.Helper()
	made, err := newCertificate("test", []string{host})
	require.NoError(l.t, err)
	key, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	require.NoError(l.t, err)
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), ResourceVersion: strconv.Itoa(len(l.secretsBy))},
		Data: map[string][]byte{
			corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: made.Certificate[0]}),
			corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		},
	}
	l.secretsBy["ns/"+name] = s
	return s
}

// presented returns the names in the certificate that a client gets when it asks for host.
func (l *lab) presented(host string) []string {
	l.t.Helper()
	conn, err := tls.Dial("tcp", l.https, &tls.Config{ServerName: host, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	require.NoError(l.t, err)
	defer conn.Close()
	require.Equal(l.t, "h2", conn.ConnectionState().NegotiatedProtocol)
	return conn.ConnectionState().PeerCertificates[0].DNSNames
}
