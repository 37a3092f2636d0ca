package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/rest"
	"k8s.io/component-base/logs"
	logsapi "k8s.io/component-base/logs/api/v1"

	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/server/pki"
)

// renewalInterval is the interval between checks of the certificates: soon enough after the clock
// was set or an address was added, at a cost of a few system calls.
const renewalInterval = time.Minute

// ControlPlane is a prepared control plane: its files exist and its arguments are valid. Its
// components share the process's package variables, so a process can have only one.
type ControlPlane struct {
	cfg   Config
	creds *pki.Credentials
	now   func() time.Time

	apiserver         *apiServer
	controllerManager *controllerManager
	scheduler         *scheduler

	mu    sync.Mutex // guards nodes, and allows one writer of the certificate files
	nodes map[string]node

	trouble atomic.Pointer[renewalTrouble] // of the last renewal; nil after success
}

// node holds the arguments of IssueNode for a credentials directory, for its renewal.
type node struct {
	name  string
	addrs []netip.Addr
}

// Prepare validates cfg and parses the extra arguments before it creates anything. Then it creates
// the PKI, kubeconfigs and encryption configuration, or renews what needs it. It may be interrupted
// at any moment and called again.
func Prepare(cfg Config) (*ControlPlane, error) {
	return prepare(cfg, time.Now)
}

func prepare(cfg Config, now func() time.Time) (*ControlPlane, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("control plane: %w", err)
	}
	c := &ControlPlane{cfg: cfg, now: now, creds: pki.New(layout.Data(cfg.DataDir)), nodes: map[string]node{}}
	if err := c.parseOptions(); err != nil {
		return nil, err
	}
	if err := checkAuditPolicy(cfg.AuditPolicy); err != nil {
		return nil, err
	}

	if cfg.HasState {
		if err := c.creds.CheckKeys(); err != nil {
			return nil, err
		}
	}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("prepare certificates: %w", err)
	}
	if err := c.renew(); err != nil {
		return nil, fmt.Errorf("prepare certificates: %w", err)
	}
	if err := pki.EnsureEncryption(layout.Data(cfg.DataDir).EncryptionConfig()); err != nil {
		return nil, fmt.Errorf("prepare encryption of Secrets: %w", err)
	}
	if err := c.apiserver.writePolicies(); err != nil {
		return nil, err
	}
	// Not earlier, because completing reads the service-account key.
	if err := c.apiserver.complete(); err != nil {
		return nil, err
	}
	return c, nil
}

// parseOptions builds the components' upstream options. They share one registry of feature gates
// and emulated versions, which takes effect for the whole process once all arguments are known.
func (c *ControlPlane) parseOptions() error {
	var err error
	if c.apiserver, err = newAPIServer(c.cfg, c.creds); err != nil {
		return err
	}
	if c.controllerManager, err = newControllerManager(c.cfg, c.creds); err != nil {
		return err
	}
	if c.scheduler, err = newScheduler(c.cfg, c.creds); err != nil {
		return err
	}
	registry := c.apiserver.options.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := registry.Set(); err != nil {
		return fmt.Errorf("set feature gates and emulated version: %w", err)
	}
	for _, err := range registry.Validate() {
		return fmt.Errorf("set feature gates and emulated version: %w", err)
	}
	if err := c.controllerManager.validate(); err != nil {
		return err
	}
	utilfeature.DefaultMutableFeatureGate.AddMetrics()
	registry.AddMetrics()

	// Several components of one process apply the same log settings; the second time must not be an
	// error.
	logsapi.ReapplyHandling = logsapi.ReapplyHandlingIgnoreUnchanged
	verbosity := max(c.apiserver.options.Logs.Verbosity, c.controllerManager.options.Logs.Verbosity, c.scheduler.options.Logs.Verbosity)
	if verbosity > 0 {
		if _, err := logs.GlogSetter(fmt.Sprint(uint32(verbosity))); err != nil {
			return fmt.Errorf("set verbosity: %w", err)
		}
	}
	// As upstream's commands do: API deprecation warnings are for people, not for controllers.
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	return nil
}

// APIServer returns kube-apiserver. It is ready when /readyz returns ok.
func (c *ControlPlane) APIServer() component.Component { return c.apiserver }

// ControllerManager returns kube-controller-manager. Start it when the apiserver is ready; it is
// ready when all controllers are built. After that it no longer initialises volume plugins, and a
// kubelet may start in this process. The CSI plugin keeps a package variable that belongs to the
// component that initialises it last. That must be the kubelet, or else CSINode is never written.
func (c *ControlPlane) ControllerManager() component.Component { return c.controllerManager }

// Scheduler returns kube-scheduler. Start it when the apiserver is ready; it is ready when it has
// seen all nodes and pods.
func (c *ControlPlane) Scheduler() component.Component { return c.scheduler }

// Renewal returns the component that keeps certificates valid, and the apiserver's up to date with
// the machine's addresses. That includes the certificates of nodes that IssueNode wrote in this
// process.
func (c *ControlPlane) Renewal() component.Component { return renewal{c} }

// IssueNode writes the credentials directory of a node, or brings it up to date: see "The seam" in
// docs/architecture.md. addrs are the addresses at which the apiserver may reach the kubelet.
func (c *ControlPlane) IssueNode(dir, nodeName string, addrs []netip.Addr) error {
	if problems := validation.IsDNS1123Subdomain(nodeName); len(problems) > 0 {
		return fmt.Errorf("node name %q: %s", nodeName, strings.Join(problems, "; "))
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := c.creds.IssueNode(dir, nodeName, addrs, c.cfg.url(), c.now()); err != nil {
		return fmt.Errorf("issue credentials of node %s: %w", nodeName, err)
	}
	c.nodes[dir] = node{nodeName, addrs}
	return nil
}

// load creates the directories first, because the lock needs one.
func (c *ControlPlane) load() error {
	if err := c.creds.MakeDirs(); err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return c.creds.Load()
}

// lock gives the caller the exclusive right to write the certificate files, in this process and
// among other processes.
func (c *ControlPlane) lock() (unlock func(), err error) {
	c.mu.Lock()
	release, err := c.creds.Lock()
	if err != nil {
		c.mu.Unlock()
		return nil, err
	}
	return func() { release(); c.mu.Unlock() }, nil
}

// renew brings every certificate up to date. Their users read them again: the apiserver and the
// kubelet are notified of changed files, clients check every five minutes. The copy of the
// kubeconfig comes last, as it may be anywhere: a copy that cannot be written stops no other
// renewal.
func (c *ControlPlane) renew() error {
	if err := c.renewCertificates(); err != nil {
		return err
	}
	return pki.CopyKubeconfig(c.cfg.pki())
}

func (c *ControlPlane) renewCertificates() error {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	// Finish a change that a verb began before it was killed.
	if err := c.creds.FinishRotation(); err != nil {
		return err
	}
	now := c.now()
	changed, err := c.creds.Renew(c.cfg.pki(), now)
	if err != nil {
		return err
	}
	for dir, n := range c.nodes {
		names, err := c.creds.IssueNode(dir, n.name, n.addrs, c.cfg.url(), now)
		if err != nil {
			return err
		}
		changed = append(changed, names...)
	}
	if len(changed) > 0 {
		slog.Info("certificates written", "component", "certificates", "names", changed)
	}
	return nil
}

type renewal struct{ *ControlPlane }

var _ component.Troubled = renewal{}

// Name implements component.Component.
func (renewal) Name() string { return "certificates" }

// Run implements component.Component.
func (r renewal) Run(ctx context.Context) error {
	tick := time.NewTicker(renewalInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			r.try()
		}
	}
}

// try renews what needs it. A full disk is no reason to stop a cluster whose certificates are valid
// for months: an error is logged once, and stays in the status until a renewal succeeds.
func (r renewal) try() {
	err := r.renew()
	before := r.trouble.Load()
	switch {
	case err == nil:
		r.trouble.Store(nil)
	case before == nil || before.text != err.Error():
		now := &renewalTrouble{since: r.now(), text: err.Error()}
		r.trouble.Store(now)
		slog.Error("cannot renew certificates", "component", r.Name(), "err", err)
	}
}

// Trouble implements component.Troubled.
func (r renewal) Trouble() []string { return r.trouble.Load().lines() }

// Ready implements component.Component.
func (renewal) Ready(context.Context) error { return nil }

// renewalTrouble is shown by "mote status" while certificates cannot be renewed.
type renewalTrouble struct {
	since time.Time
	text  string
}

func (t *renewalTrouble) lines() []string {
	if t == nil {
		return nil
	}
	return []string{fmt.Sprintf("certificates cannot be renewed since %s: %s", t.since.Format(time.RFC3339), t.text)}
}
