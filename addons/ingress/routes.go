package ingress

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// annRedirect on an Ingress with TLS makes plain requests redirect to https.
const annRedirect = "mote.dev/redirect-to-https"

// These are the appProtocols of Service ports that mote supports: the names of KEP-3726, and IANA's
// https.
const (
	appH2C   = "kubernetes.io/h2c"
	appHTTPS = "https"
	appWSS   = "kubernetes.io/wss"
)

// These are the reasons of events on Ingresses that cannot be served as defined.
const (
	reasonBackend     = "BackendUnusable"
	reasonSecret      = "SecretUnusable"
	reasonCertificate = "CertificateMismatch"
	reasonPath        = "PathTaken"
)

// objects gives access to the objects of the cluster, by namespace and name.
type objects struct {
	ingresses []*networkingv1.Ingress // the Ingresses that mote serves
	service   func(namespace, name string) *corev1.Service
	slices    func(namespace, service string) []*discoveryv1.EndpointSlice
	secret    func(namespace, name string) *corev1.Secret
}

// problem describes a fault of an Ingress.
type problem struct{ reason, message string }

// problems holds the faults by Ingress.
type problems map[types.UID][]problem

func (p problems) add(ingress *networkingv1.Ingress, reason, format string, args ...any) {
	said := problem{reason, fmt.Sprintf(format, args...)}
	if !slices.Contains(p[ingress.UID], said) {
		p[ingress.UID] = append(p[ingress.UID], said)
	}
}

// compiler makes tables. It keeps the parts that a table shares with the next one. One goroutine
// uses it.
type compiler struct {
	proxy        *proxy
	certificates certificates
	endpoints    map[string]*endpoint
}

// compilation is the state while one table is made.
type compilation struct {
	*compiler
	objects
	table     *table
	problems  problems
	backends  map[string]*backend
	endpoints map[string]*endpoint // of this table
	now       time.Time
}

// compile makes the table of all Ingresses. If two Ingresses claim the same path, the older one
// gets it.
func (c *compiler) compile(from objects, now time.Time) (*table, problems) {
	from.ingresses = slices.SortedFunc(slices.Values(from.ingresses), func(a, b *networkingv1.Ingress) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(title(a), title(b)))
	})
	m := &compilation{
		compiler: c, objects: from, table: newTable(), problems: make(problems),
		backends: make(map[string]*backend), endpoints: make(map[string]*endpoint), now: now,
	}
	for _, ingress := range from.ingresses {
		m.addTLS(ingress)
		m.addRules(ingress)
	}
	for address, e := range c.endpoints {
		if m.endpoints[address] == nil {
			e.kept.close()
		}
	}
	c.endpoints = m.endpoints
	c.certificates.forget()
	return m.table, m.problems
}

// nothing returns the table without any Ingress. It also drops the cached state and the connections
// to pods.
func (c *compiler) nothing() *table {
	t, _ := c.compile(objects{}, time.Time{})
	return t
}

func title(i *networkingv1.Ingress) string { return i.Namespace + "/" + i.Name }

func (m *compilation) addRules(ingress *networkingv1.Ingress) {
	toHTTPS := len(ingress.Spec.TLS) > 0 && ingress.Annotations[annRedirect] == "true"
	hosts := []*hostRoutes{m.table.others}
	for _, rule := range ingress.Spec.Rules {
		host := m.table.host(rule.Host)
		hosts = append(hosts, host)
		if rule.HTTP == nil {
			continue
		}
		for _, p := range rule.HTTP.Paths {
			add := host.addPrefix // also the meaning of ImplementationSpecific
			if p.PathType != nil && *p.PathType == networkingv1.PathTypeExact {
				add = host.addExact
			}
			if !add(p.Path, &route{m.backend(ingress, &p.Backend), toHTTPS}) {
				m.problems.add(ingress, reasonPath, "the path %s of host %q is another Ingress' or is there twice; the first one has it",
					cmp.Or(p.Path, "/"), rule.Host)
			}
		}
	}
	if ingress.Spec.DefaultBackend == nil {
		return
	}
	fallback := &route{m.backend(ingress, ingress.Spec.DefaultBackend), toHTTPS}
	for _, host := range hosts {
		if host.fallback == nil {
			host.fallback = fallback
		}
	}
}

// backend returns the backend of a rule. A backend that is not usable answers 503, so that no other
// rule replaces it.
func (m *compilation) backend(ingress *networkingv1.Ingress, of *networkingv1.IngressBackend) *backend {
	unusable := func(format string, args ...any) *backend {
		m.problems.add(ingress, reasonBackend, format+"; requests for it are answered with 503", args...)
		b := &backend{name: title(ingress)}
		m.proxy.serve(b)
		return b
	}
	if of.Service == nil {
		return unusable("a backend that is a resource cannot be served, only Services can")
	}
	port := of.Service.Port.Name
	if port == "" {
		port = strconv.Itoa(int(of.Service.Port.Number))
	}
	name := fmt.Sprintf("%s/%s:%s", ingress.Namespace, of.Service.Name, port)
	if b := m.backends[name]; b != nil {
		return b
	}
	service := m.service(ingress.Namespace, of.Service.Name)
	if service == nil {
		return unusable("the Service %s is not there", of.Service.Name)
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return unusable("the Service %s is of type ExternalName, which could lead anywhere", of.Service.Name)
	}
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP &&
			(p.Name == port || of.Service.Port.Name == "" && p.Port == of.Service.Port.Number)
	})
	if i < 0 {
		return unusable("the Service %s has no TCP port %s", of.Service.Name, port)
	}
	b := &backend{name: name, protocol: protocolOf(&service.Spec.Ports[i])}
	b.next.Store(rand.Uint32())
	b.endpoints = m.endpointsOf(service, service.Spec.Ports[i].Name)
	m.proxy.serve(b)
	m.backends[name] = b
	return b
}

func protocolOf(p *corev1.ServicePort) protocol {
	if p.AppProtocol == nil {
		return plain
	}
	switch *p.AppProtocol {
	case appH2C:
		return h2c
	case appHTTPS, appWSS:
		return overTLS
	}
	return plain
}

// endpointsOf returns the pods of a Service that are ready. If none is ready, it returns those that
// still serve while they terminate.
func (m *compilation) endpointsOf(service *corev1.Service, port string) []*endpoint {
	var ready, ending []string
	for _, slice := range m.slices(service.Namespace, service.Name) {
		if slice.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name == nil && port != "" || p.Name != nil && *p.Name != port {
				continue
			}
			for _, e := range slice.Endpoints {
				if len(e.Addresses) == 0 {
					continue
				}
				address := net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port)))
				switch is := func(b *bool) bool { return b != nil && *b }; {
				case e.Conditions.Ready == nil || *e.Conditions.Ready:
					ready = append(ready, address)
				case is(e.Conditions.Serving) && is(e.Conditions.Terminating):
					ending = append(ending, address)
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	slices.Sort(ready)
	var all []*endpoint
	for _, address := range slices.Compact(ready) {
		all = append(all, m.endpoint(address))
	}
	return all
}

// endpoint returns the endpoint of an address. It reuses the one of the last table.
func (m *compilation) endpoint(address string) *endpoint {
	e := cmp.Or(m.endpoints[address], m.compiler.endpoints[address])
	if e == nil {
		e = &endpoint{address: address}
	}
	m.endpoints[address] = e
	return e
}

// addTLS finds the certificates for the hosts of an Ingress.
func (m *compilation) addTLS(ingress *networkingv1.Ingress) {
	for _, entry := range ingress.Spec.TLS {
		if entry.SecretName == "" {
			continue // uses the default certificate
		}
		unusable := func(why string) {
			m.problems.add(ingress, reasonSecret, "the Secret %s of spec.tls cannot be used: %s; its hosts get a certificate that nobody trusts",
				entry.SecretName, why)
		}
		secret := m.secret(ingress.Namespace, entry.SecretName)
		if secret == nil {
			unusable("it is not there")
			continue
		}
		c := m.certificates.of(secret)
		if c.err != nil {
			unusable(c.err.Error())
			continue
		}
		hosts := entry.Hosts
		if len(hosts) == 0 {
			hosts = c.leaf.DNSNames
		}
		for _, host := range hosts {
			host = strings.ToLower(host)
			if m.table.certificates[host] == nil {
				m.table.certificates[host] = c
			}
			if objection := c.objection(host, m.now); objection != "" {
				m.problems.add(ingress, reasonCertificate, "the certificate in Secret %s %s", entry.SecretName, objection)
			}
		}
	}
}
