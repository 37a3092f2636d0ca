package dns

import (
	"context"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/acl"          // refuse clients
	_ "github.com/coredns/coredns/plugin/any"          // short answers to ANY
	_ "github.com/coredns/coredns/plugin/autopath"     // search paths walked by the server
	_ "github.com/coredns/coredns/plugin/bind"         // further addresses
	_ "github.com/coredns/coredns/plugin/bufsize"      // size of UDP answers
	_ "github.com/coredns/coredns/plugin/cache"        //
	_ "github.com/coredns/coredns/plugin/cancel"       // time limits
	_ "github.com/coredns/coredns/plugin/chaos"        // version.bind
	_ "github.com/coredns/coredns/plugin/dns64"        // IPv6 clients, IPv4 servers
	_ "github.com/coredns/coredns/plugin/errors"       //
	_ "github.com/coredns/coredns/plugin/file"         // zones from files
	_ "github.com/coredns/coredns/plugin/forward"      // upstreams
	_ "github.com/coredns/coredns/plugin/header"       //
	_ "github.com/coredns/coredns/plugin/hosts"        // fixed names
	_ "github.com/coredns/coredns/plugin/k8s_external" // Services by outside names
	"github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance" // order of answers
	_ "github.com/coredns/coredns/plugin/local"       // localhost
	_ "github.com/coredns/coredns/plugin/log"         //
	_ "github.com/coredns/coredns/plugin/metadata"    //
	_ "github.com/coredns/coredns/plugin/minimal"     // short answers
	_ "github.com/coredns/coredns/plugin/rewrite"     //
	_ "github.com/coredns/coredns/plugin/secondary"   // zones from other servers
	_ "github.com/coredns/coredns/plugin/template"    //
	_ "github.com/coredns/coredns/plugin/timeouts"    //
	_ "github.com/coredns/coredns/plugin/tls"         //
	_ "github.com/coredns/coredns/plugin/transfer"    // zone transfers
	_ "github.com/coredns/coredns/plugin/whoami"      //
	"github.com/miekg/dns"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// These are mote's own directives. The rewriter puts them into a Corefile.
const (
	directiveListen      = "mote_listen"
	directiveBound       = "mote_bound"
	directiveKubernetes  = "mote_kubernetes"
	directiveLoop        = "mote_loop"
	directivePrometheus  = "mote_prometheus"
	directiveUnreachable = "mote_unreachable"
	directiveIgnored     = "mote_ignored"
)

// directives returns the directives that a Corefile may use, in upstream's order. Each query passes
// the plugins in this order. The directives that open sockets come first; no query passes those.
func directives() []string {
	return []string{
		"tls", "timeouts", "bind", directiveListen, directiveBound, "metadata", "cancel", "bufsize", directiveIgnored,
		directivePrometheus, "errors", "log", "local", "dns64", "any", "chaos", "loadbalance", "cache", "rewrite",
		"acl", "header", "autopath", "minimal", "template", "transfer", "hosts", "k8s_external",
		directiveKubernetes, "file", "secondary", directiveLoop, "forward", directiveUnreachable, "whoami",
	}
}

// register installs mote's directives in CoreDNS. They are package variables of CoreDNS, so there
// is one server for each process.
func (s *Server) register() {
	dnsserver.Directives = directives()
	dnsserver.Quiet = true
	caddy.Quiet = true
	plugin.Register(directiveListen, s.setupListen)
	plugin.Register(directiveBound, s.setupBound)
	plugin.Register(directivePrometheus, s.setupPrometheus)
	plugin.Register(directiveKubernetes, s.setupKubernetes)
	plugin.Register(directiveLoop, s.setupLoop)
	plugin.Register(directiveUnreachable, setupUnreachable)
	plugin.Register(directiveIgnored, setupIgnored)
}

// setupListen makes a block listen on Config.Address only, and not on other addresses of the
// machine, where strangers could ask it.
func (s *Server) setupListen(c *caddy.Controller) error {
	dnsserver.GetConfig(c).ListenHosts = []string{s.cfg.Address.String()}
	if all := caddy.Instances(); len(all) > 0 {
		s.building = all[len(all)-1] // the only way to reach the instance if it is refused
	}
	return s.front.adopt(c)
}

// setupBound handles a block that sets its own addresses with "bind".
func (s *Server) setupBound(c *caddy.Controller) error { return s.front.adopt(c) }

// setupKubernetes sets up the kubernetes plugin with mote's credentials. Upstream's setup would
// also replace the logger of the whole process.
func (s *Server) setupKubernetes(c *caddy.Controller) error {
	c.Next()
	k, err := kubernetes.ParseStanza(c)
	if err != nil {
		return plugin.Error("kubernetes", err)
	}
	if c.Next() {
		return plugin.Error("kubernetes", plugin.ErrOnce)
	}
	if k.ClientConfig == nil && len(k.APIServerList) == 0 {
		k.ClientConfig = clientConfig{s.client}
	}
	start, stop, err := k.InitKubeCache(context.Background())
	if err != nil {
		return plugin.Error("kubernetes", err)
	}
	if start != nil {
		c.OnStartup(start)
	}
	if stop != nil {
		c.OnShutdown(stop)
	}
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		k.Next = next
		return k
	})
	return nil
}

// clientConfig passes an existing configuration to the plugin.
type clientConfig struct{ config *rest.Config }

func (c clientConfig) ClientConfig() (*rest.Config, error) { return rest.CopyConfig(c.config), nil }

func (clientConfig) RawConfig() (clientcmdapi.Config, error) { return clientcmdapi.Config{}, nil }

func (clientConfig) Namespace() (string, bool, error) { return "", false, nil }

func (clientConfig) ConfigAccess() clientcmd.ConfigAccess { return nil }

// setupIgnored accepts directives that have no meaning inside this process. health and ready serve
// the probes of a pod and would open ports on the machine. reload watches a file. debug lets a
// panic through, which would end the whole cluster. pprof opens a port.
func setupIgnored(c *caddy.Controller) error {
	skip(c)
	return nil
}

// setupUnreachable replaces "forward . /etc/resolv.conf" when the machine has no name server.
func setupUnreachable(c *caddy.Controller) error {
	c.Next()
	if !c.NextArg() {
		return plugin.Error("forward", c.ArgErr())
	}
	zones := plugin.Host(c.Val()).NormalizeExact()
	if len(zones) == 0 {
		return plugin.Error("forward", c.Errf("unable to normalize '%s'", c.Val()))
	}
	skip(c)
	dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
		return unreachable{next, plugin.Zones(zones)}
	})
	return nil
}

// skip reads the rest of a directive and ignores it.
func skip(c *caddy.Controller) {
	for c.Next() {
	}
}

// unreachable answers at once that a name outside the cluster cannot be resolved.
type unreachable struct {
	next  plugin.Handler
	zones plugin.Zones
}

func (unreachable) Name() string { return directiveUnreachable }

func (u unreachable) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if u.zones.Matches(r.Question[0].Name) == "" {
		return plugin.NextOrFailure(u.Name(), u.next, ctx, w, r)
	}
	return dns.RcodeServerFailure, nil
}
