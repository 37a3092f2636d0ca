package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/mote-k8s/mote/addons"
	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/agent/payload"
	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/inotify"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/internal/logging"
	"github.com/mote-k8s/mote/internal/memory"
	"github.com/mote-k8s/mote/server"
	"github.com/mote-k8s/mote/server/pki"
)

// bridge is the pod network's interface.
const bridge = "mote0"

// newServerCommand returns the verb that runs a node.
func newServerCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a whole Kubernetes node: control plane, containers, network",
		Long: `Run a whole Kubernetes node in this process: datastore, kube-apiserver, kube-controller-manager,
kube-scheduler, kubelet, kube-proxy, containerd and the addons (DNS, storage). It is ready when "mote status" says so.
SIGTERM or ^C stops it; containers go on and are found again at the next start. A second one stops it at once.

Each setting is also a variable (--node-name: MOTE_NODE_NAME) and a key in the configuration file.`,
		GroupID: groupRun,
		Args:    noArgs,
	}
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := load()
		if err != nil {
			return err
		}
		return runServer(cmd.Context(), e, s)
	}
	return cmd
}

// runServer is the story of a node's life, docs/architecture.md, "Start-up". Whatever can be wrong with the
// machine or the settings is found before anything is made, in steps 3 and 4.
func runServer(ctx context.Context, e *env, s *settings.Settings) error {
	started := time.Now()

	// 1. One log, before anything can log.
	history := &logging.History{}
	log, err := logging.Setup(e.stderr, history, s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	logWarnings(s)
	if err := requireRoot("server"); err != nil {
		return err
	}
	s, note, err := withNodeName(s)
	if err != nil {
		return err
	}
	if err := bypassProxy(e, s); err != nil {
		return err
	}
	if e.getenv("GOGC") == "" {
		debug.SetGCPercent(startGCPercent)
	}
	// What we start must not speak to the service manager in our name: runc would.
	manager := newServiceManager(e)

	// 2. As a container's first process we would have to reap strangers; leave that to init.
	if os.Getpid() == 1 {
		argv, err := ownCommand(e)
		if err != nil {
			return err
		}
		return execUnderInit(ctx, payloadRoot(s), argv, os.Environ())
	}

	// 3. What would stop us later is looked for now, because later something would be half made.
	warnings, err := preflight(s)
	if err != nil {
		return err
	}

	// 4. The parts judge their settings and arguments. That makes nothing.
	budgets, mostMemory, err := boundProcess()
	if err != nil {
		return err
	}
	nodeConfig := agentConfig(s)
	nodeConfig.Budgets = budgets
	node, err := agent.New(nodeConfig)
	if err != nil {
		return err
	}
	store, err := newStore(s)
	if err != nil {
		return err
	}

	// 5. The data directory is ours alone from here on.
	lock, err := holdStore(s)
	if err != nil {
		return err
	}
	defer lock.close()

	// 6. Keys, certificates, kubeconfigs: some milliseconds, and everybody needs them.
	plane, err := prepare(s, store, budgets, mostMemory)
	if err != nil && lock.undo() {
		return diskHint(err) // a wrong argument is found before anything is written
	}
	// "mote logs" tells of a start that fails, too.
	if err := history.Open(s.LogDir()); err != nil {
		// A full disk keeps no cluster from running.
		slog.Warn("\"mote logs\" will show nothing", "component", "mote", "err", err)
	}
	defer history.Close()
	defer log.Flush()
	if err != nil {
		slog.Error("cannot start", "component", "mote", "err", err)
		return diskHint(err)
	}
	for _, f := range warnings {
		slog.Warn("machine is not ideal", "component", "mote", "check", f.Name, "message", f.Message)
	}
	logProxy(e)
	if note != "" {
		slog.Warn("the node is not called as its host is", "component", "mote", "node", s.NodeName, "message", note)
	}
	watch, err := newNodeWatch(s, started)
	if err != nil {
		return err
	}

	// 7. The parts, in an order that units() gives, and the addons.
	group, err := newGroup(s, units(e, s, plane, store, node, watch, started), budgets)
	if err != nil {
		return err
	}

	return runParts(ctx, e, s, &parts{group, watch, store, manager, log, started, budgets, note})
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
func runParts(ctx context.Context, e *env, s *settings.Settings, p *parts) error {
	// 8. The first signal stops the parts in order; the second finds Go's default and ends us.
	ctx, restore := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer restore()
	context.AfterFunc(ctx, restore)

	// 9. Tell who asks ("mote status") and who started us how we are.
	status, err := listenStatus(s.StatusSocket(), func(ctx context.Context) report {
		return makeReport(ctx, s, p)
	})
	if err != nil {
		return diskHint(err)
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
		settle(e)
		tellRepairs(ctx, s, p.store)
	})

	// 10. Run until a signal comes or a part ends.
	context.AfterFunc(ctx, func() {
		p.log.Stopping()
		p.manager.stopping()
	})
	err = p.group.Run(ctx)
	restore()
	tellers.Wait()
	return diskHint(err)
}

// logWarnings logs what is not right with the configuration files, which were read before there was a log.
func logWarnings(s *settings.Settings) {
	for _, warning := range s.Warnings {
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

// preflight returns the first thing that keeps a node from running here, or else what makes it run
// less well than it could. It changes nothing.
func preflight(s *settings.Settings) (warnings []agent.Finding, err error) {
	if payload.Dir(payloadRoot(s)) == "" {
		return nil, payload.ErrAbsent
	}
	if err := checkNoReset(s.DataDir); err != nil {
		return nil, err
	}
	if pid, err := holderOf(s.DataDir); err != nil {
		return nil, err
	} else if pid != 0 {
		return nil, inUse(s.DataDir, strconv.Itoa(pid))
	}
	if err := checkArgFiles(s); err != nil {
		return nil, err
	}
	if err := inotify.CheckInstances(); err != nil {
		return nil, err
	}
	listeners, err := readListeners()
	if err != nil {
		return nil, err
	}
	for _, p := range portsOf(s) {
		if err := checkPort(p, listeners); err != nil {
			return nil, err
		}
	}
	for _, f := range agent.Check(agentConfig(s)) {
		switch f.State {
		case agent.StateFail:
			return nil, fmt.Errorf("%s: %s; \"mote check\" shows all", f.Name, f.Message)
		case agent.StateWarn:
			warnings = append(warnings, f)
		}
	}
	return warnings, nil
}

func payloadRoot(s *settings.Settings) string { return layout.Data(s.DataDir).Payload() }

// serverURL is where the node reaches the apiserver: on loopback, unless it listens elsewhere only.
func serverURL(s *settings.Settings) string {
	addr := s.HTTPSListenAddress
	switch addr {
	case netip.IPv4Unspecified():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		addr = netip.IPv6Loopback()
	}
	return "https://" + netip.AddrPortFrom(addr, uint16(s.HTTPSListenPort)).String()
}

func credentialsDir(s *settings.Settings) string {
	return layout.Data(s.DataDir).Credentials()
}

// nodeIP is the node's address in the cluster: the bridge's, which is stable, unless one was set.
func nodeIP(s *settings.Settings) netip.Addr {
	if s.NodeIP.IsValid() {
		return s.NodeIP
	}
	return s.BridgeAddress()
}

// agentConfig is the node that s describes.
func agentConfig(s *settings.Settings) agent.Config {
	return agent.Config{
		DataDir:        s.DataDir,
		RunDir:         s.RunDir,
		KubeletDir:     s.KubeletDir,
		PayloadDir:     payload.Dir(payloadRoot(s)),
		ImagesDir:      s.ImageDir,
		Server:         serverURL(s),
		CredentialsDir: credentialsDir(s),
		NodeName:       s.NodeName,
		NodeIP:         nodeIP(s),
		NodeLabels:     s.NodeLabels,
		NodeTaints:     s.NodeTaints,
		ClusterCIDR:    s.ClusterCIDR,
		PodCIDR:        s.PodCIDR(),
		ServiceCIDR:    s.ServiceCIDR,
		ClusterDNS:     s.ClusterDNS,
		ClusterDomain:  s.ClusterDomain,
		Bridge:         bridge,
		CNI:            s.CNI,
		Proxy:          s.Proxy,
		SeccompDefault: s.Profile == server.ProfileCIS,
		KubeletArgs:    s.KubeletArgs,
		ProxyArgs:      s.ProxyArgs,
	}
}

// addonsConfig is what the addons that s asks for need to know.
func addonsConfig(s *settings.Settings) addons.Config {
	client, metrics := pki.Addons(layout.Data(s.DataDir)), pki.MetricsServer(layout.Data(s.DataDir))
	return addons.Config{
		Access: api.Access{
			Server:   serverURL(s),
			CAFile:   client.CAFile,
			CertFile: client.CertFile,
			KeyFile:  client.KeyFile,
		},
		NodeName:    s.NodeName,
		Address:     addonsAddress(s),
		Bridge:      addonsBridge(s),
		Attachments: agent.AttachmentsDir(agentConfig(s)),

		LoadBalancerPool: s.LoadBalancerPool,
		IngressHTTPPort:  s.IngressHTTPPort,
		IngressHTTPSPort: s.IngressHTTPSPort,
		ServiceCIDR:      s.ServiceCIDR,
		ClusterDNS:       s.ClusterDNS,
		ClusterDomain:    s.ClusterDomain,
		DataDir:          s.DataDir,
		RunDir:           s.RunDir,
		ManifestsDir:     s.ManifestsDir,
		// The pods' file first: it knows of servers behind a stub on loopback. The stub itself will do if
		// there is nothing else.
		ResolvConfs:     []string{layout.Data(s.DataDir).ResolvConf(), "/etc/resolv.conf"},
		MetricsCertFile: metrics.CertFile,
		MetricsKeyFile:  metrics.KeyFile,

		Disabled: s.Disable,
	}
}

// addonsAddress is where pods reach what runs in this process: the bridge, which strangers do not.
func addonsAddress(s *settings.Settings) netip.Addr {
	if s.CNI == "bridge" {
		return s.BridgeAddress()
	}
	return nodeIP(s)
}

// addonsBridge is where our pod network is, if it is ours.
func addonsBridge(s *settings.Settings) string {
	if s.CNI == "bridge" {
		return bridge
	}
	return ""
}
