package dns

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/coredns/caddy/caddyfile"
	"github.com/stretchr/testify/require"
)

func rewriterFor(upstreams ...string) rewriter {
	r := rewriter{port: Port}
	for _, u := range upstreams {
		r.upstreams = append(r.upstreams, netip.MustParseAddr(u))
	}
	return r
}

func TestRewrite(t *testing.T) {
	for _, test := range []struct {
		name, in, want string
		upstreams      []string
	}{
		{"port and address", ".:53 {\n  errors\n}\n", ".:10053 { mote_listen\nerrors\n}\n", nil},
		{"several zones", "a.test:53, b.test:53,\nc.test {\n}\n", "a.test:10053, b.test:10053,\nc.test:10053 { mote_listen\n}\n", nil},
		{"another port", "a.test:5353 {\n}\n", "a.test:5353 { mote_listen\n}\n", nil},
		{"networks", "10.0.0.0/8, 2001:db8::/32:53 {\n}\n", "10.0.0.0/8:10053, 2001:db8::/32:10053 { mote_listen\n}\n", nil},
		{"addresses of its own", "a.test,\nb.test:53 {\n x {\n y\n }\n bind 127.0.0.2\n}\nc.test {\n}\n",
			"a.test,\nb.test:53 { mote_bound\nx {\ny\n}\nbind 127.0.0.2\n}\nc.test:10053 { mote_listen\n}\n", nil},
		{"another transport", "tls://.:53 {\n}\n", "tls://.:53 { mote_listen\n}\n", nil},
		{"snippet", "(s) {\n debug\n}\n", "(s) {\nmote_ignored\n}\n", nil},
		{"directives by name, their options not", ".:53 {\n kubernetes x {\n  health\n }\n loop\n}\n",
			".:10053 { mote_listen\nmote_kubernetes x {\nhealth\n}\nmote_loop\n}\n", nil},
		{"lines stay", ".:53 { # a\n\n\n  hosts {\n   1.2.3.4 a\n  }\n}\n", ".:10053 { mote_listen\n\n\nhosts custom/none.hosts {\n1.2.3.4 a\n}\n}\n", nil},
		{"block on one line", ".:53 {\nhosts { }\n}\n", ".:10053 { mote_listen\nhosts custom/none.hosts {\n}\n}\n", nil},
		{"quotes", ".:53 {\n template IN A {\n  answer \"{{ .Name }} IN TXT \\\"a b\\\"\"\n }\n}\n",
			".:10053 { mote_listen\ntemplate IN A {\nanswer \"{{ .Name }} IN TXT \\\"a b\\\"\"\n}\n}\n", nil},
		{"upstreams", ".:53 {\n forward . /etc/resolv.conf {\n  max_concurrent 9\n }\n}\n",
			".:10053 { mote_listen\nforward . 192.0.2.1 2001:db8::1 {\nmax_concurrent 9\n}\n}\n", []string{"192.0.2.1", "2001:db8::1"}},
		{"no upstreams", ".:53 {\n forward . /etc/resolv.conf {\n  max_concurrent 9\n }\n}\n",
			".:10053 { mote_listen\nmote_unreachable . {\nmax_concurrent 9\n}\n}\n", nil},
		{"no upstreams but a fixed one", ".:53 {\n forward . /etc/resolv.conf 192.0.2.9\n}\n",
			".:10053 { mote_listen\nforward . 192.0.2.9\n}\n", nil},
		{"imports", ".:53 {\n import /etc/coredns/custom/*.override\n import s\n}\nimport custom/*.server\n",
			".:10053 { mote_listen\nimport custom/*.override\nimport s\n}\nimport custom/*.server\n", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := rewriterFor(test.upstreams...).corefile(corefileKey, test.in)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
}

func TestRewriteRefuses(t *testing.T) {
	for in, want := range map[string]string{
		".:53\nerrors\n":                                      "Corefile:1 - a server block needs its directives in braces: .:53 {",
		".:53 {\n}\n}\n":                                      "Corefile:3 - a closing brace without an opening one",
		".:53 {\n\n import /etc/shadow\n}\n":                  "Corefile:3 - cannot import /etc/shadow: only snippets",
		".:53 {\n file /etc/shadow\n}\n":                      "Corefile:2 - file cannot read /etc/shadow: a Corefile may read keys of the ConfigMaps coredns and coredns-custom",
		".:53 {\n file ../../shadow\n}\n":                     "cannot read ../../shadow",
		".:53 {\n file /etc/coredns/../shadow\n}\n":           "cannot read",
		".:53 {\n file custom/a/b\n}\n":                       "cannot read",
		".:53 {\n hosts /etc/hosts a.test\n}\n":               "cannot read /etc/hosts",
		"tls://.:853 {\n tls a.pem /key.pem\n}\n":             "cannot read /key.pem",
		".:53 {\n tls a.pem key.pem {\n keylog /x\n}\n}\n":    "keylog cannot read /x",
		".:53 {\n autopath /etc/passwd\n}\n":                  "cannot read /etc/passwd",
		".:53 {\n loadbalance weighted /etc/passwd\n}\n":      "cannot read /etc/passwd",
		".:53 {\n forward . 1.1.1.1 /etc/shadow\n}\n":         "cannot read /etc/shadow",
		".:53 {\n forward . unix:///run/x.sock\n}\n":          "cannot read unix:///run/x.sock",
		"(x) {\n kubeconfig /root/.kube/config\n}\n":          "kubeconfig cannot read /root/.kube/config",
		".:53 {\n template IN TXT {\n answer {$HOME}\n}\n}\n": "environment variables",
		".:53 {\n import custom/../../shadow\n}\n":            "Corefile:2 - cannot import",
	} {
		_, err := rewriterFor().corefile(corefileKey, in)
		require.ErrorContains(t, err, want)
	}
}

func TestRewriteOverride(t *testing.T) {
	got, err := rewriterFor().override("a.override", "loop\nhosts {\n loop\n}\n")
	require.NoError(t, err)
	require.Equal(t, "mote_loop\nhosts custom/none.hosts {\nloop\n}\n", got)
}

// TestRewriteFiles checks that plugins read the keys of the ConfigMaps at their paths on this
// machine.
func TestRewriteFiles(t *testing.T) {
	r := rewriterFor("192.0.2.1")
	r.dir = "/run/mote/dns"
	got, err := r.override("a.override", "file /etc/coredns/a.db a.test\nfile custom/b.db\nhosts NodeHosts {\n ttl 60\n}\n"+
		"autopath @kubernetes\nforward . /etc/resolv.conf tls://9.9.9.9%dns.quad9.net 1.1.1.1:53 [2001:db8::1]:53 {\n tls ca.pem\n}\n")
	require.NoError(t, err)
	require.Equal(t, "file /run/mote/dns/a.db a.test\nfile /run/mote/dns/custom/b.db\nhosts /run/mote/dns/NodeHosts {\nttl 60\n}\n"+
		"autopath @kubernetes\nforward . 192.0.2.1 tls://9.9.9.9%dns.quad9.net 1.1.1.1:53 [2001:db8::1]:53 {\ntls /run/mote/dns/ca.pem\n}\n", got)
}

func ourWord(word string) bool {
	return word == directiveListen || word == directiveBound || word == emptyHosts
}

// FuzzRewrite checks that no input makes the rewriter panic or its output grow without limit. The
// output, read back, has at least as many lines and the same words, plus mote's own.
func FuzzRewrite(f *testing.F) {
	f.Add(Config{Domain: "cluster.local"}.defaultCorefile())
	f.Add("a:53, b {\n x \"y # \\\" z\n\" }\n")
	f.Add("\ufeff{ { }")
	f.Fuzz(func(t *testing.T, text string) {
		out, err := rewriterFor("192.0.2.1").corefile(corefileKey, text)
		if err != nil {
			return
		}
		var got, want []string
		for _, line := range splitLines("", out) {
			for _, w := range line {
				if !ourWord(w.text) {
					got = append(got, w.text)
				}
			}
		}
		for _, line := range splitLines("", text) {
			for _, w := range line {
				if !ourWord(w.text) {
					want = append(want, w.text)
				}
			}
		}
		require.Equal(t, len(want), len(got), "%q", out)
		_, _ = caddyfile.Parse(corefileKey, strings.NewReader(out), nil)
	})
}
