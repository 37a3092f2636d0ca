package machine

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/mote-k8s/mote/addons"
	"github.com/mote-k8s/mote/addons/networkpolicy"
	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/agent/payload"
	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/snapshot"
	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/server"
)

// units returns the components in start order. Those that no other component waits for start at
// once; the stop is in reverse order.
func (m *Machine) units(plane *server.ControlPlane, store *datastore.Datastore,
	node *agent.Node, watch *nodeWatch, started time.Time,
) []component.Unit {
	say := &speaker{stderr: m.env.Stderr, terminal: m.env.Terminal, started: started}
	ready := newNodeReady(watch, m.CNI == "none")
	controllers := plane.ControllerManager()
	list := []component.Unit{
		// The apiserver advertises the bridge's address and the kubelet binds it.
		{Component: node.Network()},
		{Component: store},
		// While the apiserver starts, prepare the rest of the machine for pods.
		{Component: &unpacking{root: m.payloadRoot(), done: make(chan struct{})}},
		{Component: node.Containerd(), After: []string{"payload"}},
		{Component: node.Images(), After: []string{"containerd"}},
		{Component: plane.Renewal()},
		{Component: say.when(plane.APIServer(), "API", "url", m.serverURL()), After: []string{"datastore", "network"}},
		// Without this, clients of the apiserver would only log that it does not answer yet.
		{Component: controllers, After: []string{"kube-apiserver"}},
		{Component: plane.Scheduler(), After: []string{"kube-apiserver"}},
		// The kubelet's CSI plugin must be initialised after the controller manager's, with which
		// it shares a package variable (agent/README.md, "CSI"). The kubelet does the work before
		// that meanwhile.
		{Component: node.Kubelet(controllers.Ready), After: []string{"kube-apiserver", "network", "images"}},
	}
	if m.Proxy != "none" {
		list = append(list, component.Unit{Component: node.Proxy(), After: []string{"kube-apiserver", "network"}})
	}
	if m.SnapshotSchedule != nil && m.OwnEngine() {
		list = append(list, component.Unit{Component: m.newSnapshots(store), After: []string{"datastore"}})
	}
	return append(list, component.Unit{
		Component: say.when(ready, "node", "next", "mote kubectl get nodes"), After: []string{"kubelet"},
	})
}

// newGroup adds the addons. They need the components, and no component needs them, except that pods
// start only once policies are in force.
func (m *Machine) newGroup(parts []component.Unit, budgets *limit.Budgets) (*component.Group, error) {
	config := m.addonsConfig()
	config.Budgets = budgets
	addonUnits, err := addons.Units(config)
	if err != nil {
		return nil, err
	}
	named := func(name string) func(component.Unit) bool {
		return func(u component.Unit) bool { return u.Name() == name }
	}
	if guard := slices.IndexFunc(addonUnits, named(networkpolicy.Name)); guard >= 0 {
		kubelet := slices.IndexFunc(parts, named("kubelet"))
		parts[kubelet].After = append(parts[kubelet].After, networkpolicy.Name)
		parts = slices.Insert(parts, kubelet, addonUnits[guard])
		addonUnits = slices.Delete(addonUnits, guard, guard+1)
	}
	return component.NewGroup(append(parts, addonUnits...)...)
}

// unpacking unpacks the per-pod programs to the disk. It is a component of the group so that the
// control plane starts at the same time.
type unpacking struct {
	root string
	done chan struct{}
}

// Name implements component.Component.
func (*unpacking) Name() string { return "payload" }

// Run implements component.Component.
func (u *unpacking) Run(ctx context.Context) error {
	if _, err := payload.Unpack(ctx, u.root); err != nil {
		return fmt.Errorf("unpack programs: %w", err)
	}
	close(u.done)
	<-ctx.Done()
	return nil
}

// Ready implements component.Component.
func (u *unpacking) Ready(ctx context.Context) error {
	select {
	case <-u.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("programs are not unpacked to %s yet", u.root)
	}
}

// speaker reports the two moments that people wait for, on the terminal or else in the log.
type speaker struct {
	stderr   io.Writer
	terminal bool
	started  time.Time
	mu       sync.Mutex // keeps lines whole
}

// when wraps c, named what in the message, and reports once when it is ready.
func (s *speaker) when(c component.Component, what, key, value string) component.Component {
	return announced{c, func() {
		after := time.Since(s.started).Round(10 * time.Millisecond)
		if !s.terminal {
			slog.Info(what+" is ready", "component", "mote", "after", after, key, value)
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintf(s.stderr, " ✓ %s is ready after %s; %s: %s\n", what, after, key, value)
	}}
}

type announced struct {
	component.Component
	tell func()
}

// Ready implements component.Component.
func (a announced) Ready(ctx context.Context) error {
	err := a.Component.Ready(ctx)
	if err == nil {
		a.tell()
	}
	return err
}

// newSnapshots returns the component that takes snapshots of the store on schedule.
func (m *Machine) newSnapshots(store *datastore.Datastore) *snapshot.Schedule {
	return &snapshot.Schedule{
		Folder: snapshot.Folder(m.SnapshotDir), Source: store.Snapshot, Origin: m.SnapshotOrigin(),
		Timetable: m.SnapshotSchedule, Keep: m.SnapshotRetention,
	}
}

// Trouble implements component.Troubled for a component that does.
func (a announced) Trouble() []string {
	if troubled, ok := a.Component.(component.Troubled); ok {
		return troubled.Trouble()
	}
	return nil
}
