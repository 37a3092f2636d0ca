// Package ingress routes requests from outside to Services by host and path, as Ingresses of class
// "mote" define. It is a reverse proxy in this process, on two ports of the node.
//
// It owns the IngressClass mote, the two ports while there are Ingresses, and the part of the
// Ingress status that holds the address. A request takes this way: front.go accepts it, match.go
// finds its route in a table, proxy.go passes it on, backend.go chooses the pod, and direct.go
// sends it. When something changes, routes.go makes a new table of the whole state. A request uses
// the table that is active when it arrives, so a change disturbs no request.
//
// Enter with New and run the Controller as a component; Remove deletes what it left in the cluster.
// README.md describes the decisions and their reasons.
package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/addons/loadbalancer"
	"github.com/mote-k8s/mote/internal/fair"
	"github.com/mote-k8s/mote/internal/limit"
)

// Name is the addon's name in settings, status and logs.
const Name = "ingress"

// aboutIngress is the prefix of a report on an Ingress in `mote status`.
const aboutIngress = "Ingress "

// Config defines where the addon serves. It never changes after New.
type Config struct {
	Access api.Access
	// HTTPPort and HTTPSPort are served on all addresses of the machine.
	HTTPPort, HTTPSPort int
	// Interface is the bridge of the pods, and Address the address of the bridge. The status of an
	// Ingress holds it on a machine that has no other address.
	Interface string
	Address   netip.Addr
	// Budgets limit the connections of clients. With nil the limits apply without reports.
	Budgets *limit.Budgets
}

// Controller is the addon. It implements component.Component and component.Troubled, which reports
// Ingresses that are not served as defined.
type Controller struct {
	api.Troubles
	cfg      Config
	kube     kubernetes.Interface
	objs     *api.Objects
	events   *api.Events
	proxy    *proxy
	compiler compiler // used by Run only
	ports    ports    // used by Run only
	closing  sync.WaitGroup
	// fail ends Run when a port cannot be served any more.
	fail  context.CancelCauseFunc
	ready chan struct{}
	// said holds the problems of each Ingress that were reported by an event. Used by Run only.
	said map[types.UID][]problem
}

// New makes the controller.
func New(cfg Config) (*Controller, error) {
	c := &Controller{cfg: cfg, ready: make(chan struct{}), said: make(map[types.UID][]problem)}
	var err error
	if c.kube, err = kubernetes.NewForConfig(cfg.Access.Admin(Name)); err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	if c.objs, err = api.NewObjects(cfg.Access.Admin(Name), Name); err != nil {
		return nil, err
	}
	if c.proxy, err = newProxy(cfg.HTTPPort, cfg.HTTPSPort); err != nil {
		return nil, err
	}
	if err := c.proxy.registerMetrics(); err != nil {
		return nil, err
	}
	c.compiler.proxy = c.proxy
	c.ports.plain = port{number: cfg.HTTPPort, setting: "ingress-http-port"}
	c.ports.secure = port{number: cfg.HTTPSPort, setting: "ingress-https-port", tls: &tls.Config{GetCertificate: c.proxy.getCertificate}}
	return c, nil
}

// Remove deletes the class and the addresses that mote wrote to Ingresses.
func Remove(ctx context.Context, access api.Access) error {
	kube, err := kubernetes.NewForConfig(access.Admin(Name))
	if err != nil {
		return fmt.Errorf("make %s's client: %w", Name, err)
	}
	ingresses, err := kube.NetworkingV1().Ingresses(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list Ingresses: %w", err)
	}
	for _, i := range ingresses.Items {
		if err := keepStatus(ctx, kube, &i, netip.Addr{}); err != nil {
			return err
		}
	}
	objs, err := api.NewObjects(access.Admin(Name), Name)
	if err != nil {
		return err
	}
	return objs.Remove(ctx, ownObjects()...)
}

// Trouble implements component.Troubled. It reports problems of Ingresses and an excess of
// requests.
func (c *Controller) Trouble() []string {
	list := c.Troubles.Trouble()
	for _, gate := range []*fair.Gate{c.proxy.gate, c.proxy.refusals} {
		if text := gate.Trouble(); text != "" {
			list = append(list, text)
		}
	}
	return list
}

// Name implements component.Component.
func (*Controller) Name() string { return Name }

// Ready implements component.Component. The addon is ready when the existing Ingresses are served
// as far as possible.
func (c *Controller) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return errors.New("the Ingresses are not looked at yet")
	}
}

// Run implements component.Component.
func (c *Controller) Run(ctx context.Context) error {
	c.events = api.NewEvents(c.kube, Name)
	defer c.events.Close()
	err := api.Retry(ctx, Name, func(ctx context.Context) error { return c.objs.Apply(ctx, ownObjects()...) })
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, api.ErrForeign):
		// Another program owns a class of that name. The API must stay up so that users can change
		// this.
		c.events.Warn(ownObjects()[0].Object, "NotOurs", err.Error())
		c.Note("the addon stands by", err.Error())
		close(c.ready)
		<-ctx.Done()
		return nil
	case err != nil:
		return err
	}
	changed, change := api.Changes()
	stopAddresses, err := loadbalancer.WatchAddresses(change)
	if err != nil {
		return err
	}
	defer stopAddresses()
	parent := ctx
	ctx, c.fail = context.WithCancelCause(ctx)
	seen := &watches{kube: c.kube, change: change}
	defer seen.running.Wait()
	defer c.fail(nil) // ends the watches
	seen.start(ctx)
	defer c.proxy.transports.close()
	defer c.compiler.nothing()
	defer c.closing.Wait()
	defer c.releaseAll()
	api.Follow(ctx, Name, &c.Troubles, changed, func() { close(c.ready) }, func(ctx context.Context) (bool, error) {
		return c.sync(ctx, seen)
	})
	if parent.Err() != nil {
		return nil
	}
	return context.Cause(ctx)
}

// sync serves the present Ingresses. waiting is true if a port was not available.
func (c *Controller) sync(ctx context.Context, seen *watches) (waiting bool, err error) {
	all := typed[*networkingv1.Ingress](seen.ingresses.List())
	mine := ours(all, typed[*networkingv1.IngressClass](seen.classes.List()))
	found := make(problems)
	var address netip.Addr
	var errs []error
	if len(mine) == 0 {
		c.releaseAll() // other programs may use the ports
		c.proxy.routes.Store(c.compiler.nothing())
	} else {
		seen.startBackends(ctx)
		if ctx.Err() != nil {
			return false, nil
		}
		var routes *table
		routes, found = c.compiler.compile(seen.objects(mine), time.Now())
		c.proxy.routes.Store(routes)
		node, nodeErr := loadbalancer.NodeAddress(c.cfg.Interface, c.cfg.Address)
		errs = append(errs, nodeErr)
		if nodeErr == nil {
			errs = append(errs, c.serveAll(ctx, node, seen, mine, found))
		}
		waiting = c.ports.plain.front == nil || c.ports.secure.front == nil
		if c.ports.plain.front != nil || c.ports.secure.front != nil {
			address = node
		}
	}
	for _, i := range all {
		if slices.Contains(mine, i) {
			errs = append(errs, keepStatus(ctx, c.kube, i, address))
		} else {
			errs = append(errs, keepStatus(ctx, c.kube, i, netip.Addr{}))
		}
	}
	c.tell(mine, found)
	return waiting, errors.Join(errs...)
}

// tell reports problems: each one by an event once, and all of them in the status while they last.
func (c *Controller) tell(ingresses []*networkingv1.Ingress, found problems) {
	wrong := make(map[string]bool)
	for _, i := range ingresses {
		var said []string
		for _, p := range found[i.UID] {
			if !slices.Contains(c.said[i.UID], p) {
				c.events.Warn(i, p.reason, p.message)
			}
			said = append(said, p.message)
		}
		about := aboutIngress + title(i)
		wrong[about] = len(said) > 0
		c.Note(about, strings.Join(said, "; "))
	}
	c.said = found
	c.Forget(func(about string) bool { return strings.HasPrefix(about, aboutIngress) && !wrong[about] })
}

func (c *Controller) releaseAll() {
	c.release(&c.ports.plain)
	c.release(&c.ports.secure)
}
