package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/mote-k8s/mote/cmd/mote/settings"
)

// The variables that name proxies, as Go and most programs read them. Programs differ in the case that they prefer, so
// both are always set to the same.
const (
	httpProxyVariable  = "HTTP_PROXY"
	httpsProxyVariable = "HTTPS_PROXY"
	noProxyVariable    = "NO_PROXY"
)

// bypassProxy adds the cluster of s and the given hosts to NO_PROXY, so that a proxy gets pulls of images and other requests
// to the outside, and nothing that stays on this machine. It also puts the proxy settings of s into the environment.
// net/http reads these variables once, at the first request of the process: call it before any client exists.
func bypassProxy(e *env, s *settings.Settings, hosts ...string) error {
	return setProxy(e, s, append(directTargets(s), hosts...))
}

// loopbackTargets keeps requests to this machine off a proxy, in the syntax of NO_PROXY. Not every program reads networks.
func loopbackTargets() []string { return []string{"localhost", "127.0.0.1", "127.0.0.0/8", "::1"} }

// directTargets lists what the cluster's own traffic goes to, in the syntax of NO_PROXY: networks, addresses and names,
// where a name with a leading dot stands for all names below it.
func directTargets(s *settings.Settings) []string {
	targets := append(loopbackTargets(),
		s.ClusterCIDR.String(), s.ServiceCIDR.String(),
		".svc", "."+s.ClusterDomain,
		nodeIP(s).String(),
	)
	if s.NodeName != "" { // clients on the machine call the API alone
		targets = append(targets, s.NodeName)
	}
	if s.LoadBalancerPool.IsValid() {
		targets = append(targets, s.LoadBalancerPool.String())
	}
	if a := s.HTTPSListenAddress; a.IsValid() && !a.IsUnspecified() {
		targets = append(targets, a.String())
	}
	return targets
}

// setProxy sets the proxy variables of this process and of what it starts: to the settings where there are some, and with direct
// added to NO_PROXY. Without a proxy it changes nothing.
func setProxy(e *env, s *settings.Settings, direct []string) error {
	lookUp := func(setting, name string) string {
		return cmp.Or(setting, e.getenv(name), e.getenv(strings.ToLower(name)))
	}
	values := map[string]string{
		httpProxyVariable:  lookUp(s.HTTPProxy, httpProxyVariable),
		httpsProxyVariable: lookUp(s.HTTPSProxy, httpsProxyVariable),
	}
	if values[httpProxyVariable] == "" && values[httpsProxyVariable] == "" {
		return nil
	}
	values[noProxyVariable] = extendNoProxy(lookUp(strings.Join(s.NoProxy, ","), noProxyVariable), direct)
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

// extendNoProxy appends the targets that the list lacks. The list "*" keeps everything off the proxy already, and means that only while it
// stands alone.
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

// logProxy logs the proxy that pulls of images will use, without its password.
func logProxy(e *env) {
	for _, name := range []string{httpsProxyVariable, httpProxyVariable} {
		value := e.getenv(name)
		if value == "" {
			continue
		}
		shown := "set, but not a URL"
		if u, err := url.Parse(value); err == nil {
			shown = u.Redacted()
		}
		slog.Info("requests to the outside use a proxy, the cluster's own do not", "component", "mote",
			"variable", name, "proxy", shown, "except", e.getenv(noProxyVariable))
		return
	}
}

// hostOf returns the host of a URL, for NO_PROXY; a text that is none is returned as it is.
func hostOf(text string) string {
	if u, err := url.Parse(text); err == nil && u.Hostname() != "" {
		return u.Hostname()
	}
	return text
}
