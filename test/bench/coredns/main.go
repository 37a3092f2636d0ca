// Command coredns is CoreDNS as a separate program, from the module that mote links. The bench
// compares mote's DNS to it. It has only the plugins of Kubernetes' default Corefile, in upstream's
// order, so that it does not need the modules of the clouds' plugins.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/metrics"
)

func main() {
	dnsserver.Directives = []string{"bind", "prometheus", "errors", "loadbalance", "cache", "kubernetes", "forward"}
	coremain.Run()
}
