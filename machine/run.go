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

// Run is the story of a node's life, docs/architecture.md, "Start-up". Whatever can be wrong with the
// machine or the settings is found before anything is made, in steps 3 and 4.
func (m *Machine) Run(ctx context.Context) error {
	started := time.Now()

	// 1. One log, before anything can log.
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
	// What we start must not speak to the service manager in our name: runc would.
	manager := newServiceManager(m.env)

	// 2. As a container's first process we would have to reap strangers; leave that to init.
	if os.Getpid() == 1 {
		argv, err := ownCommand(m.env.Args)
		if err != nil {
			return err
		}
		return ExecUnderInit(ctx, m.payloadRoot(), argv, os.Environ())
	}

	// 3. What would stop us later is looked for now, because later something would be half made.
	warnings, err := m.preflight()
	if err != nil {
		return err
	}

	// 4. The parts judge their settings and arguments. That makes nothing.
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

	// 5. The data directory is ours alone from here on.
	lock, err := m.HoldStore()
	if err != nil {
		return err
	}
	defer lock.Close()

	// 6. Keys, certificates, kubeconfigs: some milliseconds, and everybody needs them.
	plane, err := m.Prepare(store, budgets, mostMemory)
	if err != nil && lock.undo() {
		return DiskHint(err) // a wrong argument is found before anything is written
	}
	// "mote logs" tells of a start that fails, too.
	if err := history.Open(m.LogDir()); err != nil {
		// A full disk keeps no cluster from running.
		slog.Warn("\"mote logs\" will show nothing", "component", "mote", "err", err)
	}
	defer history.Close()
	defer log.Flush()
	if err != nil {
		slog.Error("cannot start", "component", "mote", "err", err)
		return DiskHint(err)
	}
	for _, f := range warnings {
		slog.Warn("machine is not ideal", "component", "mote", "check", f.Name, "message", f.Message)
	}
	logProxy(m.env.Getenv)
	if note != "" {
		slog.Warn("the node is not called as its host is", "component", "mote", "node", m.NodeName, "message", note)
	}
	watch, err := m.newNodeWatch(started)
	if err != nil {
		return err
	}

	// 7. The parts, in an order that units() gives, and the addons.
	group, err := m.newGroup(m.units(plane, store, node, watch, started), budgets)
	if err != nil {
		return err
	}

	return m.runParts(ctx, &parts{group, watch, store, manager, log, started, budgets, note})
}

// parts are what a node runs, and who is told of it.
type parts struct {
	group   *component.Group
	watch   *nodeWatch
	store   *datastore.Datastore
	manager *serviceManager
	log     *logging.Log
	started time.Time
	budgets *limit.Budgets
	// nameNote says why the node is not called as its host is, or is empty.
	nameNote string
}

// runParts is the rest of the story.
func (m *Machine) runParts(ctx context.Context, p *parts) error {
	// 8. The first signal stops the parts in order; the second finds Go's default and ends us.
	ctx, restore := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer restore()
	context.AfterFunc(ctx, restore)

	// 9. Tell who asks ("mote status") and who started us how we are.
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
			return // stopped or failed before; Run says it
		}
		p.manager.ready()
		p.log.Started()
		settle(m.env.Getenv)
		m.tellRepairs(ctx, p.store)
	})

	// 10. Run until a signal comes or a part ends.
	context.AfterFunc(ctx, func() {
		p.log.Stopping()
		p.manager.stopping()
	})
	err = p.group.Run(ctx)
	restore()
	tellers.Wait()
	return DiskHint(err)
}

// logWarnings logs what is not right with the configuration files, which were read before there was a log.
func (m *Machine) logWarnings() {
	for _, warning := range m.Warnings {
		slog.Warn("configuration file is another user's", "component", "mote", "message", warning)
	}
}

// boundProcess bounds what the process takes of the machine: memory, and descriptors by the budgets of its listeners.
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
