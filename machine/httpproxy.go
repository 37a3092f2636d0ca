package machine

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/mote-k8s/mote/machine/settings"
)

// Variables that name proxies, as Go and most programs read them. Programs differ in the case that
// they prefer, so both cases always get the same value.
const (
	httpProxyVariable  = "HTTP_PROXY"
	httpsProxyVariable = "HTTPS_PROXY"
	noProxyVariable    = "NO_PROXY"
)

// BypassProxy adds the cluster of m and the hosts of servers, which are names or URLs, to NO_PROXY.
// A proxy then gets image pulls and other requests to the outside, and no request that stays on
// this machine. It also puts the proxy settings into the environment. net/http reads these
// variables once, at the first request of the process: call BypassProxy before any client exists.
func (m *Machine) BypassProxy(servers ...string) error {
	targets := m.directTargets()
	for _, server := range servers {
		targets = append(targets, hostOf(server))
	}
	return m.setProxy(targets)
}

// BypassLoopback adds this machine's loopback to NO_PROXY, for clients that reach a cluster there.
func BypassLoopback(e Env) error { return New(&settings.Settings{}, e).setProxy(loopbackTargets()) }

// loopbackTargets returns the names and addresses of this machine in the syntax of NO_PROXY, so
// that requests to it use no proxy. It lists addresses besides the network because some programs do
// not understand networks there.
func loopbackTargets() []string { return []string{"localhost", "127.0.0.1", "127.0.0.0/8", "::1"} }

// directTargets returns the targets of the cluster's own traffic in the syntax of NO_PROXY:
// networks, addresses and names. A name with a leading dot covers all names below it.
func (m *Machine) directTargets() []string {
	targets := append(loopbackTargets(),
		m.ClusterCIDR.String(), m.ServiceCIDR.String(),
		".svc", "."+m.ClusterDomain,
		m.nodeIP().String(),
	)
	if m.NodeName != "" { // clients on the machine call the API by this name alone
		targets = append(targets, m.NodeName)
	}
	if m.LoadBalancerPool.IsValid() {
		targets = append(targets, m.LoadBalancerPool.String())
	}
	if a := m.HTTPSListenAddress; a.IsValid() && !a.IsUnspecified() {
		targets = append(targets, a.String())
	}
	return targets
}

// setProxy sets the proxy variables of this process and its children: to the settings where they
// are set, and with direct added to NO_PROXY. Without a proxy it changes nothing.
func (m *Machine) setProxy(direct []string) error {
	lookUp := func(setting, name string) string {
		return cmp.Or(setting, m.env.Getenv(name), m.env.Getenv(strings.ToLower(name)))
	}
	values := map[string]string{
		httpProxyVariable:  lookUp(m.HTTPProxy, httpProxyVariable),
		httpsProxyVariable: lookUp(m.HTTPSProxy, httpsProxyVariable),
	}
	if values[httpProxyVariable] == "" && values[httpsProxyVariable] == "" {
		return nil
	}
	values[noProxyVariable] = extendNoProxy(lookUp(strings.Join(m.NoProxy, ","), noProxyVariable), direct)
	for name, value := range values {
		if value == "" {
			continue
		}
		for _, n := range []string{name, strings.ToLower(name)} {
			if err := os.Setenv(n, value); err != nil {
				return fmt.Errorf("set %s: %w", n, err)
			}
		}
	}
	return nil
}

// extendNoProxy appends the targets that the list lacks. The list "*" already bypasses the proxy
// for everything, and has that meaning only while it is the only item.
func extendNoProxy(list string, targets []string) string {
	var items []string
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "*" {
			return "*"
		}
		if item != "" {
			items = append(items, item)
		}
	}
	for _, t := range targets {
		if !slices.Contains(items, t) {
			items = append(items, t)
		}
	}
	return strings.Join(items, ",")
}

// logProxy logs the proxy that image pulls will use, without its password.
func logProxy(getenv func(string) string) {
	for _, name := range []string{httpsProxyVariable, httpProxyVariable} {
		value := getenv(name)
		if value == "" {
			continue
		}
		shown := "set, but not a URL"
		if u, err := url.Parse(value); err == nil {
			shown = u.Redacted()
		}
		slog.Info("requests to the outside use a proxy, the cluster's own do not", "component", "mote",
			"variable", name, "proxy", shown, "except", getenv(noProxyVariable))
		return
	}
}

// hostOf returns the host of a URL, for NO_PROXY. It returns a text that is no URL unchanged.
func hostOf(text string) string {
	if u, err := url.Parse(text); err == nil && u.Hostname() != "" {
		return u.Hostname()
	}
	return text
}
