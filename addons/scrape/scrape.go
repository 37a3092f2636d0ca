// Package scrape names the metrics ports of components that are not pods: a Service without a cluster address, with
// endpoints on the node, for each. Monitoring software finds components by such Services; kube-prometheus' monitors select
// the labels that they have.
//
// It owns Services, EndpointSlices and Endpoints in kube-system (objects.go). It runs with --expose-metrics=on only;
// otherwise the ports are on loopback, and Remove takes the objects away.
//
// Enter with New and run the component. README.md says what was decided and why.
package scrape

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"

	"github.com/mote-k8s/mote/addons/api"
)

// Name is the addon's name in settings, status and logs.
const Name = "scrape"

// Config says where the components serve their metrics. It is never changed after New.
type Config struct {
	Access   api.Access
	NodeName string
	// Address is the node's.
	Address netip.Addr
	// Components are names of those that serve metrics there.
	Components []string
}

// Targets is the addon. It implements component.Component, and component.Troubled: which objects are somebody else's.
type Targets struct {
	api.Troubles
	cfg   Config
	objs  *api.Objects
	ready chan struct{}
}

// New makes the component.
func New(cfg Config) (*Targets, error) {
	objs, err := api.NewObjects(cfg.Access.Admin(Name), Name)
	if err != nil {
		return nil, err
	}
	return &Targets{cfg: cfg, objs: objs, ready: make(chan struct{})}, nil
}

// Name implements component.Component.
func (*Targets) Name() string { return Name }

// Ready implements component.Component: the objects are written.
func (t *Targets) Ready(ctx context.Context) error {
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		return errors.New("the Services of metrics ports are not written yet")
	}
}

// Run implements component.Component. A Service that somebody else has made stays, and the other components get theirs.
func (t *Targets) Run(ctx context.Context) error {
	for _, target := range t.cfg.targets() {
		objects := t.cfg.objects(target)
		err := api.Retry(ctx, Name, func(ctx context.Context) error {
			if err := t.objs.Check(ctx, objects...); err != nil {
				return err
			}
			return t.objs.Apply(ctx, objects...)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, api.ErrForeign):
			slog.Warn("metrics port has a Service of somebody else's", "component", Name, "service", target.name, "err", err)
			t.Note("Service "+target.name, err.Error())
		case err != nil:
			return err
		}
	}
	close(t.ready)
	<-ctx.Done()
	return nil
}

// Remove takes the objects away.
func Remove(ctx context.Context, access api.Access) error {
	objs, err := api.NewObjects(access.Admin(Name), Name)
	if err != nil {
		return err
	}
	var objects []api.Object
	for _, target := range known() {
		objects = append(objects, Config{}.objects(target)...) // names suffice here
	}
	return objs.Remove(ctx, objects...)
}
