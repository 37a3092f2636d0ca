package ingress

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	toWeb   = `{service: {name: web, port: {number: 80}}}`
	toOther = `{service: {name: other, port: {name: web}}}`
)

func (l *lab) destination(host, path string) string {
	r := l.proxy.routes.Load().find(host, path)
	if r == nil {
		return ""
	}
	return r.backend.name
}

func TestCompile(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", "127.0.0.1:1")
	l.lead("other", "", "127.0.0.1:2")
	l.add(`{rules: [{host: a.test, http: {paths: [{path: /, pathType: Prefix, backend: ` + toWeb + `}]}}]}`)
	second := l.add(`{defaultBackend: ` + toOther + `, rules: [{host: A.test, http: {paths: [
		{path: /, pathType: Prefix, backend: ` + toOther + `},
		{path: /x, pathType: Exact, backend: ` + toOther + `},
		{path: /y, pathType: ImplementationSpecific, backend: ` + toOther + `}]}}, {host: b.test}]}`)
	found := l.apply()
	require.Equal(t, problems{second.UID: {{reasonPath, `the path / of host "A.test" is another Ingress' or is there twice; the first one has it`}}}, found)
	for _, c := range [][3]string{
		{"a.test", "/", "ns/web:80"}, {"a.test", "/x", "ns/other:web"}, {"a.test", "/x/", "ns/web:80"}, {"a.test", "/y/z", "ns/other:web"},
		{"b.test", "/", "ns/other:web"}, {"c.test", "/", "ns/other:web"},
	} {
		require.Equal(t, c[2], l.destination(c[0], c[1]), c)
	}
}

func TestUnusableBackends(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", "127.0.0.1:1")
	l.lead("away", "")
	l.servicesBy["ns/away"].Spec.Type = corev1.ServiceTypeExternalName
	for spec, want := range map[string]string{
		`{defaultBackend: {service: {name: none, port: {number: 80}}}}`:        "the Service none is not there; requests for it are answered with 503",
		`{defaultBackend: {service: {name: web, port: {number: 81}}}}`:         "the Service web has no TCP port 81; requests for it are answered with 503",
		`{defaultBackend: {service: {name: web, port: {name: x}}}}`:            "the Service web has no TCP port x; requests for it are answered with 503",
		`{defaultBackend: {service: {name: away, port: {number: 80}}}}`:        "the Service away is of type ExternalName, which could lead anywhere; requests for it are answered with 503",
		`{defaultBackend: {resource: {apiGroup: a.b, kind: Bucket, name: c}}}`: "a backend that is a resource cannot be served, only Services can; requests for it are answered with 503",
	} {
		l.ingresses = nil
		i := l.add(spec)
		require.Equal(t, problems{i.UID: {{reasonBackend, want}}}, l.apply())
		response, err := l.client().Get("http://any.test/")
		require.NoError(t, err)
		response.Body.Close()
		require.Equal(t, 503, response.StatusCode)
	}
}

func TestEndpointsThatEndServeWhenNoOtherDoes(t *testing.T) {
	l := newLab(t)
	ending := l.lead("web", "", "127.0.0.1:1", "127.0.0.1:2")
	yes, no := true, false
	ending.Endpoints[0].Conditions.Ready, ending.Endpoints[0].Conditions.Serving, ending.Endpoints[0].Conditions.Terminating = &no, &yes, &yes
	l.add(`{defaultBackend: ` + toWeb + `}`)
	addresses := func() (all []string) {
		l.apply()
		for _, e := range l.proxy.routes.Load().others.fallback.backend.endpoints {
			all = append(all, e.address)
		}
		return all
	}
	require.Equal(t, []string{"127.0.0.1:1"}, addresses())
	before := l.compiler.endpoints["127.0.0.1:1"]
	l.slicesBy["ns/web"][0].Endpoints[0].Conditions.Ready = &no
	require.Equal(t, []string{"127.0.0.1:2"}, addresses())
	l.slicesBy["ns/web"][0].Endpoints[0].Conditions.Ready = &yes
	require.Equal(t, []string{"127.0.0.1:1"}, addresses())
	require.NotSame(t, before, l.compiler.endpoints["127.0.0.1:1"], "what was gone is forgotten")
	before = l.compiler.endpoints["127.0.0.1:1"]
	addresses()
	require.Same(t, before, l.compiler.endpoints["127.0.0.1:1"])
}

func TestCertificates(t *testing.T) {
	l := newLab(t)
	l.lead("web", "", "127.0.0.1:1")
	l.secretFor("a", "a.test")
	l.secretFor("wild", "*.wild.test")
	l.secretFor("own", "own.test")
	broken := l.secretFor("broken", "broken.test")
	broken.Data[corev1.TLSPrivateKeyKey] = []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n")
	l.secretsBy["ns/opaque"] = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "opaque", UID: "opaque"}}
	i := l.add(`{defaultBackend: ` + toWeb + `, tls: [{hosts: [A.test], secretName: a}, {hosts: ["*.wild.test"], secretName: wild}, {secretName: own},
		{hosts: [m.test], secretName: missing}, {hosts: [broken.test], secretName: broken}, {hosts: [o.test], secretName: opaque},
		{hosts: [wrong.test], secretName: a}, {hosts: [none.test]}]}`)
	const end = "; its hosts get a certificate that nobody trusts"
	require.Equal(t, problems{i.UID: {
		{reasonSecret, "the Secret missing of spec.tls cannot be used: it is not there" + end},
		{reasonSecret, "the Secret broken of spec.tls cannot be used: failed to parse private key" + end},
		{reasonSecret, "the Secret opaque of spec.tls cannot be used: it has no tls.crt" + end},
		{reasonCertificate, "the certificate in Secret a is not for wrong.test"},
	}}, l.apply())
	for host, want := range map[string]string{
		"a.test": "a.test", "A.TEST": "a.test", "x.wild.test": "*.wild.test", "own.test": "own.test", "wrong.test": "a.test",
		"m.test": "ingress.invalid", "broken.test": "ingress.invalid", "wild.test": "ingress.invalid", "x.y.wild.test": "ingress.invalid", "": "ingress.invalid",
	} {
		require.Equal(t, []string{want}, l.presented(host), host)
	}
	// A Secret that appears late or is replaced is used without a new watch or connection.
	l.secretFor("missing", "m.test")
	l.secretFor("a", "a.test").ResourceVersion = "later"
	require.Len(t, l.apply()[i.UID], 3)
	require.Equal(t, []string{"m.test"}, l.presented("m.test"))
	require.Len(t, l.compiler.certificates.known, 6)
	l.ingresses = nil
	l.apply()
	require.Empty(t, l.compiler.certificates.known)
}

func TestObjections(t *testing.T) {
	l := newLab(t)
	c := parseCertificate(l.secretFor("a", "*.a.test"))
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	require.Empty(t, c.objection("x.a.test", now))
	require.Empty(t, c.objection("*.a.test", now))
	require.Empty(t, c.objection("test", now), "the subject, as old certificates have it")
	require.Equal(t, "is not for a.test", c.objection("a.test", now))
	require.Equal(t, "has expired at 2120-01-01T00:00:00Z", c.objection("x.a.test", now.AddDate(100, 0, 0)))
	require.Equal(t, "is not valid before 2020-01-01T00:00:00Z", c.objection("x.a.test", now.AddDate(-20, 0, 0)))
}

func TestOurs(t *testing.T) {
	class := func(name, controller, isDefault string) *networkingv1.IngressClass {
		return &networkingv1.IngressClass{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: isDefault}},
			Spec:       networkingv1.IngressClassSpec{Controller: controller},
		}
	}
	ingress := func(name, annotation string) *networkingv1.Ingress {
		i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "class " + name + annotation}}
		if name != "" {
			i.Spec.IngressClassName = &name
		}
		if annotation != "" {
			i.Annotations = map[string]string{annClass: annotation}
		}
		return i
	}
	all := []*networkingv1.Ingress{ingress("mote", ""), ingress("second", ""), ingress("nginx", ""), ingress("", "mote"), ingress("", "nginx"), ingress("", "")}
	names := func(isDefault string) (names []string) {
		for _, i := range ours(all, []*networkingv1.IngressClass{
			class("mote", controller, isDefault), class("second", controller, "false"), class("nginx", "example.com/nginx", "true"),
		}) {
			names = append(names, i.Name)
		}
		return names
	}
	require.Equal(t, []string{"class mote", "class second", "class mote", "class "}, names("true"))
	require.Equal(t, []string{"class mote", "class second", "class mote"}, names("false"))
	require.Empty(t, ours(all, nil))
}
