package machine

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/internal/logging"
	"github.com/mote-k8s/mote/internal/memory"
)

// Run runs the node from start to stop: docs/architecture.md, "Start-up". Steps 3 and 4 find every
// fault of the machine and the settings before anything is created.
func (m *Machine) Run(ctx context.Context) error {
	started := time.Now()

	// 1. Set up the one log, before anything can log.
	history := &logging.History{}
	log, err := logging.Setup(m.env.Stderr, history, m.LogLevel, m.LogFormat)
	if err != nil {
		return err
	}
	m.logWarnings()
	if err := RequireRoot("server"); err != nil {
		return err
	}
	m, note, err := m.Named()
	if err != nil {
		return err
	}
	if err := m.BypassProxy(); err != nil {
		return err
	}
	if m.env.Getenv("GOGC") == "" {
		debug.SetGCPercent(startGCPercent)
	}
	// Child processes must not notify the service manager in mote's name: runc would.
	manager := newServiceManager(m.env)

	// 2. As a container's first process mote would have to reap foreign processes; an init does
	// that.
	if os.Getpid() == 1 {
		argv, err := ownCommand(m.env.Args)
		if err != nil {
			return err
		}
		return ExecUnderInit(ctx, m.payloadRoot(), argv, os.Environ())
	}

	// 3. Check now for everything that would stop the start later, when it is half done.
	warnings, err := m.preflight()
	if err != nil {
		return err
	}

	// 4. The components check their settings and arguments. That creates nothing.
	budgets, mostMemory, err := boundProcess()
	if err != nil {
		return err
	}
	nodeConfig := m.agentConfig()
	nodeConfig.Budgets = budgets
	node, err := agent.New(nodeConfig)
	if err != nil {
		return err
	}
	store, err := m.newStore()
	if err != nil {
		return err
	}

	// 5. From here on this process has the data directory to itself.
	lock, err := m.HoldStore()
	if err != nil {
		return err
	}
	defer lock.Close()

	// 6. Create keys, certificates and kubeconfigs: it takes some milliseconds, and every component
	// needs them.
	plane, err := m.Prepare(store, budgets, mostMemory)
	if err != nil && lock.undo() {
		return DiskHint(err) // reports a wrong argument before anything is written
	}
	// "mote logs" shows a failed start, too.
	if err := history.Open(m.LogDir()); err != nil {
		// A cluster also runs when the disk is full.
		slog.Warn("\"mote logs\" will show nothing", "component", "mote", "err", err)
	}
	defer history.Close()
	defer log.Flush()
	if err != nil {
		slog.Error("cannot start", "component", "mote", "err", err)
		return DiskHint(err)
	}
	m.logStart(warnings, note)
	watch, err := m.newNodeWatch(started)
	if err != nil {
		return err
	}

	// 7. Collect the components in the order that units() defines, and the addons.
	group, err := m.newGroup(m.units(plane, store, node, watch, started), budgets)
	if err != nil {
		return err
	}

	return m.runParts(ctx, &parts{group, watch, store, manager, log, started, budgets, note})
}

// logStart logs the findings of the preflight, the proxy in use, and why the node's name is not
// that of its host, if note says so.
func (m *Machine) logStart(warnings []agent.Finding, note string) {
	for _, f := range warnings {
		slog.Warn("machine is not ideal", "component", "mote", "check", f.Name, "message", f.Message)
	}
	logProxy(m.env.Getenv)
	if note != "" {
		slog.Warn("the node is not called as its host is", "component", "mote", "node", m.NodeName, "message", note)
	}
}

// parts holds the components of a node and the receivers of its status.
type parts struct {
	group   *component.Group
	watch   *nodeWatch
	store   *datastore.Datastore
	manager *serviceManager
	log     *logging.Log
	started time.Time
	budgets *limit.Budgets
	// nameNote explains why the node's name differs from its host's, or is empty.
	nameNote string
}

// runParts runs the remaining steps of Run.
func (m *Machine) runParts(ctx context.Context, p *parts) error {
	// 8. The first signal stops the components in order. A second signal kills the process, which
	// is Go's default.
	ctx, restore := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer restore()
	context.AfterFunc(ctx, restore)

	// 9. Report the status to "mote status" and to the service manager.
	status, err := listenStatus(m.StatusSocket(), func(ctx context.Context) Report {
		return m.makeReport(ctx, p)
	})
	if err != nil {
		return DiskHint(err)
	}
	var tellers sync.WaitGroup
	tellers.Go(func() { status.serve(ctx) })
	tellers.Go(func() { memory.GiveBack(ctx) })
	tellers.Go(func() {
		if p.group.Ready(ctx) != nil {
			return // stopped or failed earlier; Run returns the reason
		}
		p.manager.ready()
		p.log.Started()
		settle(m.env.Getenv)
		m.tellRepairs(ctx, p.store)
	})

	// 10. Run until a signal arrives or a component ends.
	context.AfterFunc(ctx, func() {
		p.log.Stopping()
		p.manager.stopping()
	})
	err = p.group.Run(ctx)
	restore()
	tellers.Wait()
	return DiskHint(err)
}

// logWarnings logs the warnings about the configuration files, which were read before the log
// existed.
func (m *Machine) logWarnings() {
	for _, warning := range m.Warnings {
		slog.Warn("configuration file is another user's", "component", "mote", "message", warning)
	}
}

// boundProcess limits the resources that the process takes from the machine: memory directly, and
// file descriptors by the budgets of its listeners.
func boundProcess() (budgets *limit.Budgets, mostMemory int64, err error) {
	usable, err := agent.UsableMemory()
	if err != nil {
		return nil, 0, err
	}
	mostMemory = memory.Limit(usable)
	limit.RaiseDescriptors()
	budgets = limit.New()
	if err := legacyregistry.Registerer().Register(budgets.Collector()); err != nil {
		return nil, 0, fmt.Errorf("register the listeners' metrics: %w", err)
	}
	return budgets, mostMemory, nil
}
