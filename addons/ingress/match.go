package ingress

import (
	"path"
	"strings"
)

// table maps requests to backends. It never changes: a new table replaces it.
type table struct {
	// hosts holds the hosts of rules in lower case. wildcards holds the hosts that begin with "*.",
	// keyed by the text after it.
	hosts, wildcards map[string]*hostRoutes
	// others holds the rules without a host.
	others *hostRoutes
	// certificates holds certificates by host. The key for "*.example.com" is that name itself.
	certificates map[string]*certificate
}

// route is the destination of a request.
type route struct {
	backend *backend
	// toHTTPS is set for Ingresses that redirect plain requests to https.
	toHTTPS bool
}

// hostRoutes holds the paths of one host.
type hostRoutes struct {
	exact map[string]*route
	// prefixes have no slash at their end; "" matches every path.
	prefixes map[string]*route
	// depth is the number of elements in the longest prefix.
	depth int
	// fallback takes requests that match no rule.
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

// host returns the routes for the host of a rule. The host may be a wildcard or "".
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

// find returns the route of a request, or nil if there is none. It checks all rules of the host
// itself first, then those of the wildcard that the host matches, then those without a host. Only
// then it checks the default backends, in the same order.
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

// find prefers an exact path to prefixes, and the longest prefix to others. A prefix consists of
// whole elements.
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

// addPrefix adds a prefix and reports whether it was free.
func (h *hostRoutes) addPrefix(prefix string, r *route) bool {
	prefix = strings.TrimRight(prefix, "/")
	if h.prefixes[prefix] != nil {
		return false
	}
	h.prefixes[prefix] = r
	h.depth = max(h.depth, strings.Count(prefix, "/"))
	return true
}

// addExact adds a path and reports whether it was free.
func (h *hostRoutes) addExact(p string, r *route) bool {
	if h.exact[p] != nil {
		return false
	}
	h.exact[p] = r
	return true
}

// firstElements cuts a path after n elements. The result never ends with a slash. Without the cut
// the time for a path would grow with the square of its length.
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

// cleanPath normalises a path as a server does before it looks for the file. A rule for /admin must
// not be reachable as /public/../admin. The backend receives the path as it was sent.
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

// hostOf returns the host that a request asks for, without a port and in lower case.
func hostOf(asked string) string {
	if colon := strings.LastIndexByte(asked, ':'); colon > strings.LastIndexByte(asked, ']') {
		asked = asked[:colon]
	}
	return strings.ToLower(strings.TrimSuffix(asked, "."))
}

// parentOf returns the part that a wildcard for the host has after "*.". A wildcard stands for one
// label.
func parentOf(host string) string {
	label, parent, _ := strings.Cut(host, ".")
	if label == "" {
		return ""
	}
	return parent
}
