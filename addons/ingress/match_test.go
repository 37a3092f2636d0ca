package ingress

import (
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tableOf makes a table from rules of the form HOST TYPE PATH. The backend of a rule has the rule
// as its name.
func tableOf(rules ...string) *table {
	t := newTable()
	for _, rule := range rules {
		words := strings.Split(rule, " ")
		h, r := t.host(words[0]), &route{backend: &backend{name: rule}}
		switch words[1] {
		case "Exact":
			h.addExact(words[2], r)
		case "Prefix":
			h.addPrefix(words[2], r)
		case "Default":
			h.fallback = r
		}
	}
	return t
}

func found(t *table, host, requested string) string {
	if r := t.find(hostOf(host), requested); r != nil {
		return r.backend.name
	}
	return ""
}

// TestDocumentedPaths checks the table of
// https://kubernetes.io/docs/concepts/services-networking/ingress/#examples.
func TestDocumentedPaths(t *testing.T) {
	for _, c := range []struct {
		rules []string
		path  string
		want  string
	}{
		{[]string{" Prefix /"}, "/any/path", " Prefix /"},
		{[]string{" Exact /foo"}, "/foo", " Exact /foo"},
		{[]string{" Exact /foo"}, "/bar", ""},
		{[]string{" Exact /foo"}, "/foo/", ""},
		{[]string{" Exact /foo/"}, "/foo", ""},
		{[]string{" Prefix /foo"}, "/foo", " Prefix /foo"},
		{[]string{" Prefix /foo"}, "/foo/", " Prefix /foo"},
		{[]string{" Prefix /foo/"}, "/foo", " Prefix /foo/"},
		{[]string{" Prefix /foo/"}, "/foo/", " Prefix /foo/"},
		{[]string{" Prefix /aaa/bb"}, "/aaa/bbb", ""},
		{[]string{" Prefix /aaa/bbb"}, "/aaa/bbb", " Prefix /aaa/bbb"},
		{[]string{" Prefix /aaa/bbb/"}, "/aaa/bbb", " Prefix /aaa/bbb/"},
		{[]string{" Prefix /aaa/bbb"}, "/aaa/bbb/", " Prefix /aaa/bbb"},
		{[]string{" Prefix /aaa/bbb"}, "/aaa/bbb/ccc", " Prefix /aaa/bbb"},
		{[]string{" Prefix /aaa/bbb"}, "/aaa/bbbxyz", ""},
		{[]string{" Prefix /", " Prefix /aaa"}, "/aaa/ccc", " Prefix /aaa"},
		{[]string{" Prefix /", " Prefix /aaa", " Prefix /aaa/bbb"}, "/aaa/bbb", " Prefix /aaa/bbb"},
		{[]string{" Prefix /", " Prefix /aaa", " Prefix /aaa/bbb"}, "/ccc", " Prefix /"},
		{[]string{" Prefix /aaa", " Default -"}, "/ccc", " Default -"},
		{[]string{" Prefix /foo", " Exact /foo"}, "/foo", " Exact /foo"},
	} {
		require.Equal(t, c.want, found(tableOf(c.rules...), "example.com", c.path), "%q %s", c.rules, c.path)
	}
}

// TestDocumentedHosts checks the table of
// https://kubernetes.io/docs/concepts/services-networking/ingress/#hostname-wildcards, and the
// order between hosts.
func TestDocumentedHosts(t *testing.T) {
	for _, c := range []struct {
		rules      []string
		host, path string
		want       string
	}{
		{[]string{"*.foo.com Prefix /"}, "bar.foo.com", "/", "*.foo.com Prefix /"},
		{[]string{"*.foo.com Prefix /"}, "baz.bar.foo.com", "/", ""},
		{[]string{"*.foo.com Prefix /"}, "foo.com", "/", ""},
		{[]string{"*.foo.com Prefix /"}, ".foo.com", "/", ""},
		{[]string{"foo.com Prefix /"}, "FOO.com:8080", "/", "foo.com Prefix /"},
		{[]string{"foo.com Prefix /"}, "foo.com.", "/", "foo.com Prefix /"},
		{[]string{"*.foo.com Prefix /", "a.foo.com Prefix /"}, "a.foo.com", "/", "a.foo.com Prefix /"},
		{[]string{"*.foo.com Prefix /b", "a.foo.com Prefix /a"}, "a.foo.com", "/b", "*.foo.com Prefix /b"},
		{[]string{" Prefix /a", "foo.com Prefix /"}, "foo.com", "/a", "foo.com Prefix /"},
		{[]string{" Prefix /", "foo.com Prefix /a"}, "foo.com", "/b", " Prefix /"},
		{[]string{" Prefix /"}, "", "/", " Prefix /"},
		{[]string{" Prefix /"}, "[::1]:80", "/", " Prefix /"},
		{[]string{"foo.com Default -", " Default -"}, "foo.com", "/", "foo.com Default -"},
		{[]string{"foo.com Default -", " Default -"}, "bar.com", "/", " Default -"},
		{[]string{"foo.com Default -", " Prefix /a"}, "foo.com", "/a", " Prefix /a"},
	} {
		require.Equal(t, c.want, found(tableOf(c.rules...), c.host, c.path), "%q %s %s", c.rules, c.host, c.path)
	}
}

func TestPathsAreMatchedAsServersReadThem(t *testing.T) {
	for requested, want := range map[string]string{
		"": "/", "*": "/*", "/": "/", "/a/b": "/a/b", "/public/../admin": "/admin", "/a//b": "/a/b", "/a/./b/": "/a/b/",
		"/a/.": "/a/", "/a/..": "/", "/../../a": "/a", "/.well-known/x": "/.well-known/x", "/a/b/..": "/a/", "/a/...": "/a/...",
	} {
		require.Equal(t, want, cleanPath(requested), requested)
	}
}

func TestFirstElements(t *testing.T) {
	for _, c := range []struct {
		path string
		n    int
		want string
	}{
		{"/", 0, ""}, {"/a/b/c", 0, ""}, {"/a/b/c", 1, "/a"}, {"/a/b/c", 2, "/a/b"}, {"/a/b/c", 9, "/a/b/c"}, {"/a/", 2, "/a"},
	} {
		require.Equal(t, c.want, firstElements(c.path, c.n), c)
	}
}

// FuzzFind compares the table with the definition: the longest of the prefixes whose elements the
// path begins with.
func FuzzFind(f *testing.F) {
	f.Add("a.example.com", "/a/b", "/a", "/a/b/")
	f.Add("[::1]:80", "//", "/", "/a/../b")
	f.Add("*.example.com:", "/a/..", "/a//", "")
	f.Fuzz(func(t *testing.T, host, requested, one, other string) {
		if len(requested) > 1<<12 || strings.Contains(one+other, " ") {
			t.Skip()
		}
		elements := func(p string) []string { return strings.Split(strings.Trim(p, "/"), "/") }
		begins := func(p, prefix string) bool {
			if prefix = strings.TrimRight(prefix, "/"); prefix == "" {
				return true
			}
			return p == prefix || strings.HasPrefix(p, prefix+"/")
		}
		cleaned := cleanPath(requested)
		if !strings.HasPrefix(cleaned, "/") || strings.Contains(cleaned, "//") || cleaned != "/" && strings.TrimSuffix(cleaned, "/") != path.Clean(cleaned) {
			t.Fatalf("%q is cleaned to %q", requested, cleaned)
		}
		if again := cleanPath(cleaned); again != cleaned {
			t.Fatalf("%q is cleaned to %q, and that to %q", requested, cleaned, again)
		}
		if h := hostOf(host); hostOf(h) != h && !strings.ContainsAny(h, ":.") {
			t.Fatalf("%q", host)
		}
		one, other = path.Clean("/"+one), path.Clean("/"+other)
		got := found(tableOf(" Prefix "+one, " Prefix "+other), host, requested)
		want, length := "", -1
		for _, prefix := range []string{one, other} {
			if begins(cleaned, prefix) && len(elements(prefix)) > length && (prefix != "/" || length < 0) {
				want, length = " Prefix "+prefix, len(elements(prefix))
				if prefix == "/" {
					length = 0
				}
			}
		}
		if got != want {
			t.Fatalf("%q leads to %q instead of %q", requested, got, want)
		}
	})
}
