// Package addons holds the services that every cluster is expected to have. mote runs them in its
// own process, without images and pods. Each addon is a package of the same shape, described by its
// README:
//
//   - a Config, New, and a component that owns its objects in the cluster and maintains them;
//   - Remove, which deletes those objects when the addon is disabled;
//   - package api for the code that all addons share.
//
// Enter with Units. The list of addons (addons.go) is the only place that names all of them. The
// addons import neither server nor agent: Config holds plain values.
package addons

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/addons/dns"
	"github.com/mote-k8s/mote/addons/ingress"
	"github.com/mote-k8s/mote/addons/loadbalancer"
	"github.com/mote-k8s/mote/addons/manifests"
	"github.com/mote-k8s/mote/addons/metrics"
	"github.com/mote-k8s/mote/addons/networkpolicy"
	"github.com/mote-k8s/mote/addons/scrape"
	"github.com/mote-k8s/mote/addons/storage"
	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/limit"
)

// Config describes the cluster and the node to the addons.
type Config struct {
	Access   api.Access
	NodeName string
	// Address is this node's address on the pod network; pods reach it.
	Address netip.Addr
	// ServiceCIDR contains the addresses of Services.
	ServiceCIDR netip.Prefix
	// ClusterDNS is the address of the DNS Service, and ClusterDomain its domain.
	ClusterDNS    netip.Addr
	ClusterDomain string
	// Bridge is the interface of the pods. "" means that another program provides the pod network.
	Bridge string
	// Attachments is the directory where the CNI library records the addresses of pods.
	Attachments string
	// LoadBalancerPool is the network from which Services get addresses. If it is not valid, they
	// get the node's address.
	LoadBalancerPool netip.Prefix
	// IngressHTTPPort and IngressHTTPSPort are ports of the node. They are served while there are
	// Ingresses.
	IngressHTTPPort, IngressHTTPSPort int
	// The content of DataDir is permanent, that of RunDir is not. ManifestsDir belongs to users.
	DataDir, RunDir, ManifestsDir string
	// ResolvConfs are resolver files that name upstream DNS servers, in order of preference.
	ResolvConfs []string
	// MetricsCertFile and MetricsKeyFile hold the serving certificate of the metrics API, for
	// metrics.ServiceName.
	MetricsCertFile, MetricsKeyFile string
	// MetricsAddress is the address where the metrics of the components in Scraped are served to
	// Prometheus. If it is not valid, they are not served.
	MetricsAddress netip.Addr
	// Scraped names the components that serve metrics there to any client, and nothing else.
	Scraped []string
	// Budgets limit the resources that strangers may use in the process through the addons' ports.
	Budgets *limit.Budgets
	// Disabled names the addons that do not run and leave nothing in the cluster.
	Disabled []string
}

// addon is a row of the list.
type addon struct {
	name  string
	after []string // components that it needs
	// wanted reports whether a setting other than --disable enables the addon; nil means always.
	wanted func(Config) bool
	// ourNetwork marks an addon that works on mote's pod network only. Another pod network brings
	// its own.
	ourNetwork bool
	make       func(Config) (component.Component, error)
	// remove deletes what the addon left in the cluster in its last run.
	remove func(context.Context, api.Access) error
}

func list() []addon {
	return []addon{
		{
			name: dns.Name, after: []string{"kube-apiserver", "network"}, remove: dns.Remove,
			make: func(c Config) (component.Component, error) {
				return dns.New(dns.Config{
					Access: c.Access, Address: c.Address, ClusterIP: c.ClusterDNS, Domain: c.ClusterDomain,
					NodeName: c.NodeName, RunDir: c.RunDir, ResolvConfs: c.ResolvConfs, Budgets: c.Budgets,
				})
			},
		},
		{
			name: manifests.Name, after: []string{"kube-apiserver"}, remove: manifests.Remove,
			make: func(c Config) (component.Component, error) {
				return manifests.New(manifests.Config{Access: c.Access, Dir: c.ManifestsDir, NodeName: c.NodeName})
			},
		},
		{
			name: metrics.Name, after: []string{"kube-apiserver", "network"}, remove: metrics.Remove,
			make: func(c Config) (component.Component, error) {
				return metrics.New(metrics.Config{
					Access: c.Access, Address: c.Address, NodeName: c.NodeName,
					CertFile: c.MetricsCertFile, KeyFile: c.MetricsKeyFile, Budgets: c.Budgets,
				})
			},
		},
		{
			name: storage.Name, after: []string{"kube-apiserver"}, remove: storage.Remove,
			make: func(c Config) (component.Component, error) {
				return storage.New(storage.Config{
					Access: c.Access, NodeName: c.NodeName, DataDir: c.DataDir, RunDir: c.RunDir,
				})
			},
		},
		{
			name: networkpolicy.Name, after: []string{"kube-apiserver", "network"}, ourNetwork: true, remove: networkpolicy.Remove,
			make: func(c Config) (component.Component, error) {
				return networkpolicy.New(networkpolicy.Config{
					Access: c.Access, NodeName: c.NodeName, Bridge: c.Bridge, Address: c.Address, ServiceCIDR: c.ServiceCIDR,
					Attachments: c.Attachments, Servers: c.servers(),
				})
			},
		},
		{
			name: loadbalancer.Name, after: []string{"kube-apiserver", "network"}, remove: loadbalancer.Remove,
			make: func(c Config) (component.Component, error) {
				return loadbalancer.New(loadbalancer.Config{
					Access: c.Access, Interface: cmp.Or(c.Bridge, "lo"), Address: c.Address, Pool: c.LoadBalancerPool,
				})
			},
		},
		{
			name: ingress.Name, after: []string{"kube-apiserver", "network"}, remove: ingress.Remove,
			make: func(c Config) (component.Component, error) {
				return ingress.New(ingress.Config{
					Access: c.Access, Interface: cmp.Or(c.Bridge, "lo"), Address: c.Address,
					HTTPPort: c.IngressHTTPPort, HTTPSPort: c.IngressHTTPSPort, Budgets: c.Budgets,
				})
			},
		},
		{
			name: scrape.Name, after: []string{"kube-apiserver"}, remove: scrape.Remove,
			wanted: func(c Config) bool { return c.MetricsAddress.IsValid() },
			make: func(c Config) (component.Component, error) {
				return scrape.New(scrape.Config{
					Access: c.Access, NodeName: c.NodeName, Address: c.MetricsAddress, Components: c.Scraped,
				})
			},
		},
	}
}

// servers returns the addons that policies treat as pods.
func (c Config) servers() []api.Server {
	if slices.Contains(c.Disabled, dns.Name) {
		return nil
	}
	return []api.Server{dns.Pod(c.Address)}
}

// Names returns the names of the addons that can be disabled.
func Names() []string {
	var names []string
	for _, a := range list() {
		if a.wanted != nil {
			continue
		}
		names = append(names, a.name)
	}
	return names
}

// Units returns the addons that are not disabled, and a component that cleans up after the disabled
// ones.
func Units(cfg Config) ([]component.Unit, error) {
	var units []component.Unit
	var off []addon
	for _, a := range list() {
		if slices.Contains(cfg.Disabled, a.name) || a.ourNetwork && cfg.Bridge == "" || a.wanted != nil && !a.wanted(cfg) {
			off = append(off, a)
			continue
		}
		c, err := a.make(cfg)
		if err != nil {
			return nil, fmt.Errorf("addon %s: %w", a.name, err)
		}
		units = append(units, component.Unit{Component: c, After: a.after})
	}
	if len(off) > 0 {
		units = append(units, component.Unit{
			Component: &removal{access: cfg.Access, addons: off, done: make(chan struct{})}, After: []string{"kube-apiserver"},
		})
	}
	return units, nil
}

// removal is the component that deletes what disabled addons left.
type removal struct {
	access api.Access
	addons []addon
	done   chan struct{}

	mu    sync.Mutex // guards wrong
	wrong error
}

// Name implements component.Component.
func (*removal) Name() string { return "disabled-addons" }

// Run implements component.Component.
func (r *removal) Run(ctx context.Context) error {
	left := r.addons
	err := api.Retry(ctx, r.Name(), func(ctx context.Context) error {
		var stay []addon
		var errs []error
		for _, a := range left { // an addon that cannot be removed does not stop the others
			if err := a.remove(ctx, r.access); err != nil {
				stay, errs = append(stay, a), append(errs, fmt.Errorf("remove addon %s: %w", a.name, err))
			}
		}
		left = stay
		r.mu.Lock()
		defer r.mu.Unlock()
		r.wrong = errors.Join(errs...)
		return r.wrong
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	close(r.done)
	<-ctx.Done()
	return nil
}

// Ready implements component.Component.
func (r *removal) Ready(ctx context.Context) error {
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		return errors.Join(errors.New("the objects of disabled addons are not removed yet"), r.wrong)
	}
}
