package ingress

import (
	"path"
	"strings"
)

// table leads requests to backends. It is never changed: another one takes its place.
type table struct {
	// hosts are rules' hosts in lower case; wildcards are those that begin with "*.", by what follows it.
	hosts, wildcards map[string]*hostRoutes
	// others are the rules without a host.
	others *hostRoutes
	// certificates are by host, those for "*.example.com" by that name.
	certificates map[string]*certificate
}

// route is where a request goes.
type route struct {
	backend *backend
	// toHTTPS is for Ingresses that want no plain request for themselves.
	toHTTPS bool
}

// hostRoutes are the paths of one host.
type hostRoutes struct {
	exact map[string]*route
	// prefixes have no slash at their end: "" is every path.
	prefixes map[string]*route
	// depth is the number of elements that the longest prefix has.
	depth int
	// fallback is where requests go that no rule is for.
	fallback *route
}

func newTable() *table {
	return &table{
		hosts: make(map[string]*hostRoutes), wildcards: make(map[string]*hostRoutes), others: newHostRoutes(),
		certificates: make(map[string]*certificate),
	}
}

func newHostRoutes() *hostRoutes {
	return &hostRoutes{exact: make(map[string]*route), prefixes: make(map[string]*route)}
}

// host are the routes of a rule's host, which may be a wildcard or "".
func (t *table) host(name string) *hostRoutes {
	if name == "" {
		return t.others
	}
	in := t.hosts
	if parent, ok := strings.CutPrefix(name, "*."); ok {
		in, name = t.wildcards, parent
	}
	name = strings.ToLower(name)
	if in[name] == nil {
		in[name] = newHostRoutes()
	}
	return in[name]
}

// find is the route of a request, nil when there is none. All rules of the host itself are asked first, then those of
// the wildcard that it matches, then those without a host; only then the default backends, in the same order.
func (t *table) find(host, requested string) *route {
	levels := [...]*hostRoutes{t.hosts[host], t.wildcards[parentOf(host)], t.others}
	requested = cleanPath(requested)
	for _, h := range levels {
		if h == nil {
			continue
		}
		if r := h.find(requested); r != nil {
			return r
		}
	}
	for _, h := range levels {
		if h != nil && h.fallback != nil {
			return h.fallback
		}
	}
	return nil
}

// find prefers an exact path to prefixes, and of those the longest. A prefix is of whole elements.
func (h *hostRoutes) find(requested string) *route {
	if r := h.exact[requested]; r != nil {
		return r
	}
	for p := firstElements(requested, h.depth); ; {
		if r := h.prefixes[p]; r != nil {
			return r
		}
		last := strings.LastIndexByte(p, '/')
		if last < 0 {
			return nil
		}
		p = p[:last]
	}
}

// addPrefix tells whether the prefix was not taken yet.
func (h *hostRoutes) addPrefix(prefix string, r *route) bool {
	prefix = strings.TrimRight(prefix, "/")
	if h.prefixes[prefix] != nil {
		return false
	}
	h.prefixes[prefix] = r
	h.depth = max(h.depth, strings.Count(prefix, "/"))
	return true
}

// addExact tells whether the path was not taken yet.
func (h *hostRoutes) addExact(p string, r *route) bool {
	if h.exact[p] != nil {
		return false
	}
	h.exact[p] = r
	return true
}

// firstElements cuts a path after n elements, and never ends with a slash. Without the cut a long path would cost the
// square of its length.
func firstElements(p string, n int) string {
	for i := range len(p) {
		if p[i] != '/' {
			continue
		}
		if n == 0 {
			return strings.TrimRight(p[:i], "/")
		}
		n--
	}
	return strings.TrimRight(p, "/")
}

// cleanPath is what a server makes of a path before it looks for the file: what is for /admin must not be reached as
// /public/../admin. The backend gets the path as it was sent.
func cleanPath(requested string) string {
	if !strings.HasPrefix(requested, "/") {
		requested = "/" + requested
	}
	if !strings.Contains(requested, "//") && !strings.Contains(requested, "/.") {
		return requested
	}
	cleaned := path.Clean(requested)
	switch path.Base(requested[strings.LastIndexByte(requested, '/'):]) {
	case "/", ".", "..":
		if cleaned != "/" {
			cleaned += "/"
		}
	}
	return cleaned
}

// hostOf is the host that a request asks for, without a port and in lower case.
func hostOf(asked string) string {
	if colon := strings.LastIndexByte(asked, ':'); colon > strings.LastIndexByte(asked, ']') {
		asked = asked[:colon]
	}
	return strings.ToLower(strings.TrimSuffix(asked, "."))
}

// parentOf is what a wildcard for the host has after "*.": a wildcard stands for one label.
func parentOf(host string) string {
	label, parent, _ := strings.Cut(host, ".")
	if label == "" {
		return ""
	}
	return parent
}
