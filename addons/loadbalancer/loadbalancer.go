// Package loadbalancer gives Services of type LoadBalancer an address: the node's own, or one of a
// pool. kube-proxy leads traffic to the address to pods. It also enforces the source ranges and
// preserves the client's address.
//
// The package owns the addresses of the pool on the pods' bridge, and the part of the Services'
// status that holds the address. The API server records that part under its field manager.
// assign.go decides which Service gets which address.
//
// Enter with New and run the Controller as a component; Remove deletes addresses and statuses.
// README.md describes the decisions and their reasons.
package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	applyv1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-k8s/mote/addons/api"
)

// Name is the addon's name in settings, status and logs.
const Name = "loadbalancer"

// Class is the loadBalancerClass of mote. Services without a class belong to mote too.
const Class = "mote.dev/loadbalancer"

// manager is the field manager of the statuses that mote wrote.
const manager = "mote-" + Name

// These are the reasons of events on Services.
const (
	reasonGiven   = "AddressGiven"
	reasonRefused = "AddressRefused"
)

// Config defines the available addresses. It never changes after New.
type Config struct {
	Access api.Access
	// Interface gets the addresses of the pool. It is the pods' bridge, so the addresses disappear
	// with it.
	Interface string
	// Address is the address for Services on a machine that has addresses on Interface only.
	Address netip.Addr
	// Pool is the network from which each Service gets its own address. If it is not valid, all
	// Services get the node's address.
	Pool netip.Prefix
}

// Controller is the addon. It implements component.Component and component.Troubled, which reports
// Services without an address.
type Controller struct {
	api.Troubles
	cfg      Config
	kube     kubernetes.Interface
	events   *api.Events
	ready    chan struct{}
	contests contests // used by Run only
}

// New makes the controller.
func New(cfg Config) (*Controller, error) {
	kube, err := kubernetes.NewForConfig(cfg.Access.Admin(Name))
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	return &Controller{cfg: cfg, kube: kube, ready: make(chan struct{}), contests: make(contests)}, nil
}

// Remove deletes the addresses that Services have from mote, and the pool's addresses from the
// bridge.
func Remove(ctx context.Context, access api.Access) error {
	kube, err := kubernetes.NewForConfig(access.Admin(Name))
	if err != nil {
		return fmt.Errorf("make %s's client: %w", Name, err)
	}
	services, err := kube.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list Services: %w", err)
	}
	for _, s := range services.Items {
		if !owned(&s) {
			continue
		}
		if _, err := writeStatus(ctx, kube, &s, nil); err != nil {
			return err
		}
	}
	return keepAddresses(nil)
}

// owned reports whether mote wrote a Service's status. A status of another implementation is not
// changed.
func owned(s *corev1.Service) bool {
	for _, f := range s.ManagedFields {
		if f.Manager == manager && f.Subresource == "status" {
			return true
		}
	}
	return false
}

// Name implements component.Component.
func (*Controller) Name() string { return Name }

// Ready implements component.Component. The addon is ready when the existing Services have their
// addresses.
func (c *Controller) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the Services of type LoadBalancer are not looked at yet")
	}
}

// Run implements component.Component.
func (c *Controller) Run(ctx context.Context) error {
	c.events = api.NewEvents(c.kube, Name)
	defer c.events.Close()
	changed, change := api.Changes()
	services, stop := c.watch(ctx, change)
	defer stop()
	stopAddresses, err := WatchAddresses(change)
	if err != nil {
		return err
	}
	defer stopAddresses()
	api.Follow(ctx, Name, &c.Troubles, changed, func() { close(c.ready) }, func(ctx context.Context) (bool, error) {
		return c.sync(ctx, services.List())
	})
	return nil
}

// watch watches Services until ctx ends. stop ends the watch and waits for its end.
func (c *Controller) watch(ctx context.Context, change func()) (store cache.Store, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(c.kube.CoreV1().RESTClient(), "services", metav1.NamespaceAll, fields.Everything()),
		ObjectType:    &corev1.Service{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { change() },
			UpdateFunc: func(any, any) { change() },
			DeleteFunc: func(any) { change() },
		},
	})
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	cache.WaitForCacheSync(ctx.Done(), informer.HasSynced)
	return store, func() { cancel(); running.Wait() }
}

// sync gives every Service its status. waiting is true if a Service waits for a port of the
// machine.
func (c *Controller) sync(ctx context.Context, objects []any) (waiting bool, err error) {
	var services []*corev1.Service
	wanted := false
	for _, object := range objects {
		services = append(services, object.(*corev1.Service))
		wanted = wanted || ours(object.(*corev1.Service))
	}
	m := machine{pool: c.cfg.Pool}
	if wanted { // otherwise the machine's state is not needed
		if m, err = c.look(ctx); err != nil {
			return false, err
		}
	}
	given := assign(services, m, func(s *corev1.Service) bool { return ours(s) && !c.contests.lost(s) })
	if err := keepAddresses(c.pooled(given)); err != nil {
		return false, err
	}
	var errs []error
	for _, s := range services {
		g := given[s.UID]
		waiting = waiting || g.problem != ""
		errs = append(errs, c.give(ctx, s, g))
		c.tell(s, g.problem)
	}
	c.forget(services)
	return waiting, errors.Join(errs...)
}

// tell reports on a Service why it has no address from mote.
func (c *Controller) tell(s *corev1.Service, problem string) {
	if c.contests.lost(s) {
		problem = c.contests.problem(s)
	}
	if c.Note(title(s), problem) && problem != "" {
		c.events.Warn(s, reasonRefused, problem)
	}
}

func title(s *corev1.Service) string { return "Service " + s.Namespace + "/" + s.Name }

// forget drops the records of Services that are gone or belong to another implementation now.
func (c *Controller) forget(services []*corev1.Service) {
	titles, alive := make(map[string]bool), make(map[types.UID]bool)
	for _, s := range services {
		titles[title(s)], alive[s.UID] = true, ours(s)
	}
	c.Forget(func(about string) bool { return strings.HasPrefix(about, "Service ") && !titles[about] })
	maps.DeleteFunc(c.contests, func(uid types.UID, _ *contest) bool { return !alive[uid] })
}

func (c *Controller) pooled(given map[types.UID]grant) *linkAddresses {
	want := &linkAddresses{link: c.cfg.Interface}
	for _, g := range given {
		if g.address.IsValid() && c.cfg.Pool.IsValid() {
			want.addresses = append(want.addresses, g.address)
		}
	}
	return want
}

// look reads the used ports and the address of the machine.
func (c *Controller) look(ctx context.Context) (machine, error) {
	m := machine{pool: c.cfg.Pool}
	var err error
	if m.node, err = NodeAddress(c.cfg.Interface, c.cfg.Address); err != nil {
		return m, err
	}
	if m.taken, err = listening(); err != nil {
		return m, err
	}
	pods, err := c.kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return m, fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods.Items {
		m.taken = append(m.taken, hostPorts(&p)...)
	}
	return m, nil
}

// give writes a Service's status if it differs and mote may write it.
func (c *Controller) give(ctx context.Context, s *corev1.Service, g grant) error {
	want := g.status(s)
	if c.contests.lost(s) || c.contests.stale(s) || sameIngress(want, s.Status.LoadBalancer.Ingress) || want == nil && !owned(s) {
		return nil
	}
	if c.contests.changed(s, want); c.contests.lost(s) {
		return nil
	}
	written, err := writeStatus(ctx, c.kube, s, want)
	if err != nil {
		return err
	}
	c.contests.wrote(written)
	if want != nil {
		c.events.Tell(s, reasonGiven, "the Service has the address %s", g.address)
	}
	return nil
}

// writeStatus writes the address of a Service, or removes the entry that mote wrote. It returns the
// Service after that.
func writeStatus(ctx context.Context, kube kubernetes.Interface, s *corev1.Service, ingress []corev1.LoadBalancerIngress) (*corev1.Service, error) {
	status := applyv1.ServiceStatus()
	if len(ingress) > 0 {
		balancer := applyv1.LoadBalancerStatus()
		for _, i := range ingress {
			entry := applyv1.LoadBalancerIngress().WithIP(i.IP).WithIPMode(corev1.LoadBalancerIPModeVIP)
			for _, p := range i.Ports {
				entry.WithPorts(applyv1.PortStatus().WithPort(p.Port).WithProtocol(p.Protocol))
			}
			balancer.WithIngress(entry)
		}
		status.WithLoadBalancer(balancer)
	}
	written, err := kube.CoreV1().Services(s.Namespace).ApplyStatus(ctx, applyv1.Service(s.Name, s.Namespace).WithUID(s.UID).WithStatus(status),
		metav1.ApplyOptions{FieldManager: manager, Force: true})
	switch {
	case err == nil:
		return written, nil
	// The Service is gone, or another one has its name.
	case apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return s, nil
	}
	return nil, fmt.Errorf("write the address of Service %s/%s: %w", s.Namespace, s.Name, err)
}
