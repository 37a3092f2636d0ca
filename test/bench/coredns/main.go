// Command coredns is CoreDNS as a program of its own, from the module that mote links: what mote's DNS is measured
// beside. It has the plugins of Kubernetes' default Corefile, in upstream's order, and no other, so that the modules
// of the clouds' plugins are not needed.
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
