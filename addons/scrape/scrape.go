// Package scrape publishes the metrics ports of components that are not pods. For each component it
// makes a Service without a cluster address, with endpoints on the node. Monitoring software finds
// components by such Services; kube-prometheus' monitors select their labels.
//
// It owns Services, EndpointSlices and Endpoints in kube-system (objects.go). It runs only with
// --expose-metrics=on. Otherwise the ports are on loopback, and Remove deletes the objects.
//
// Enter with New and run the component. README.md describes the decisions and their reasons.
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

// Config defines where the components serve their metrics. It never changes after New.
type Config struct {
	Access   api.Access
	NodeName string
	// Address is the address of the node.
	Address netip.Addr
	// Components names the components that serve metrics there.
	Components []string
}

// Targets is the addon. It implements component.Component and component.Troubled, which reports
// foreign objects.
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

// Ready implements component.Component. The addon is ready when the objects are written.
func (t *Targets) Ready(ctx context.Context) error {
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
		return errors.New("the Services of metrics ports are not written yet")
	}
}

// Run implements component.Component. A foreign Service stays unchanged, and the other components
// get their Services.
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

// Remove deletes the objects.
func Remove(ctx context.Context, access api.Access) error {
	objs, err := api.NewObjects(access.Admin(Name), Name)
	if err != nil {
		return err
	}
	var objects []api.Object
	for _, target := range known() {
		objects = append(objects, Config{}.objects(target)...) // the names suffice here
	}
	return objs.Remove(ctx, objects...)
}
