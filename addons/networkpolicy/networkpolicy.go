// Package networkpolicy enforces networking.k8s.io/v1 NetworkPolicies on the pods of this node. It
// uses packet rules in its own table.
//
// It owns the nftables table inet mote-networkpolicy. Where nftables does not work, it owns the
// iptables chains MOTE-NP-* and the ipsets mote-* instead. It owns no object in the cluster.
// ruleset.go shows the way of a packet. compile.go makes the rules from the whole state after each
// change, and nft.go writes the differences. The rules stay when mote ends: pods continue to run,
// and so does their protection.
//
// Enter with New and run the Controller as a component; Remove deletes the rules. README.md
// describes the decisions and their reasons.
package networkpolicy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/addons/api"
)

// Name is the addon's name in settings, status and logs.
const Name = "networkpolicy"

// These are the reasons of events on NetworkPolicies.
const (
	reasonPartly = "NotEnforceable"
	reasonNot    = "NotEnforced"
)

// These are the subjects that `mote status` reports on.
const (
	aboutPolicy = "NetworkPolicy "
	aboutRules  = "the rules are not up to date"
)

// retryAfter is the wait between attempts to write rules that the kernel rejected.
const retryAfter = time.Second

// Config defines the pods whose traffic is checked. It never changes after New.
type Config struct {
	Access   api.Access
	NodeName string
	// Bridge is the interface of this node's pods. Address is the bridge's address, which
	// determines the family.
	Bridge  string
	Address netip.Addr
	// ServiceCIDR contains the addresses of Services.
	ServiceCIDR netip.Prefix
	// Attachments is the directory where the CNI library records the results of its plugins.
	Attachments string
	// Servers are components of this process that policies treat as pods.
	Servers []api.Server
}

// Controller is the addon. It implements component.Component and component.Troubled, which reports
// policies that are not enforced.
type Controller struct {
	api.Troubles
	cfg    Config
	kube   kubernetes.Interface
	events *api.Events
	ready  chan struct{}

	// parsed holds the policies by namespace/name, with the generation that was parsed. Used by Run
	// only.
	parsed map[string]parsedPolicy
}

type parsedPolicy struct {
	uid        string
	generation int64
	policy     *policy // nil when it is not enforced
}

// New makes the controller.
func New(cfg Config) (*Controller, error) {
	kube, err := kubernetes.NewForConfig(cfg.Access.Admin(Name))
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	return &Controller{cfg: cfg, kube: kube, ready: make(chan struct{}), parsed: make(map[string]parsedPolicy)}, nil
}

// enforcer keeps a ruleset in the kernel. The ruleset stays there.
type enforcer interface {
	// present reports whether rules of a previous run exist.
	present(context.Context) (bool, error)
	write(context.Context, *ruleset) error
	// remove deletes all rules.
	remove(context.Context) error
}

// open returns nftables where it works, and iptables with ipsets otherwise.
func open(f family) (enforcer, error) {
	nft, nftErr := openNFTables()
	if nftErr == nil {
		return nft, nil
	}
	ipt, err := openIPTables(f)
	if err != nil {
		return nil, fmt.Errorf("%w; %w", nftErr, err)
	}
	return ipt, nil
}

// Remove deletes the rules. An interface that does not work here, such as ip6tables on a kernel
// without IPv6, has never written a rule.
func Remove(ctx context.Context, _ api.Access) error {
	errs := []error{removeIPTables(ctx)}
	if nft, err := openNFTables(); err == nil {
		errs = append(errs, removePresent(ctx, nft))
	}
	return errors.Join(errs...)
}

func removePresent(ctx context.Context, e enforcer) error {
	present, err := e.present(ctx)
	if err != nil || !present {
		return err
	}
	return e.remove(ctx)
}

// Name implements component.Component.
func (*Controller) Name() string { return Name }

// Ready implements component.Component. The addon is ready when no pod that starts now can send a
// packet that is not checked by policies. That holds before the policies are known, because until
// then no packet of such a pod passes.
func (c *Controller) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return errors.New("the first packet rules are not written yet")
	}
}

// Run implements component.Component.
func (c *Controller) Run(ctx context.Context) error {
	c.events = api.NewEvents(c.kube, Name)
	defer c.events.Close()
	rules, err := open(familyOf(c.cfg.Address))
	if err == nil && c.close(ctx, rules) != nil {
		return nil // ctx has ended
	}
	if ctx.Err() != nil {
		return nil
	}
	close(c.ready)
	changed, change := api.Changes()
	if err != nil {
		c.standBy(ctx, err, change, changed)
		return nil
	}
	attached, stopAttachments, err := watchAttachments(ctx, c.cfg.Attachments, change)
	if err != nil {
		return err
	}
	defer stopAttachments()
	seen, stopWatches := watch(ctx, c.kube, change)
	defer stopWatches()
	if ctx.Err() != nil {
		return nil
	}
	if nft, ok := rules.(*nftables); ok {
		if err := removeIPTables(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("cannot remove the iptables rules of a former start", "component", Name, "err", err)
		}
		stopLoss, err := nft.watchLoss(change)
		if err != nil {
			return err
		}
		defer stopLoss()
	}
	c.follow(ctx, rules, func() state { return c.state(seen, attached) }, changed)
	return nil
}

// close blocks all packets of pods until the policies are known, if no rules exist. In that case
// the machine has just booted, and its pods must not start faster than the rules. Existing rules
// come from a previous run and stay as they are. Failed writes are repeated until ctx ends.
func (c *Controller) close(ctx context.Context, rules enforcer) error {
	// No rules of a previous run exist; a part of the rules that a failed write left may exist.
	first := false
	return api.Retry(ctx, Name, func(ctx context.Context) error {
		if !first {
			present, err := rules.present(ctx)
			if err != nil || present {
				return err
			}
			first = true
		}
		return rules.write(ctx, closed(familyOf(c.cfg.Address), c.cfg.Bridge))
	})
}

// standBy handles a machine that has neither nftables nor iptables. The cluster works, and each
// policy gets an event that it is not enforced.
func (c *Controller) standBy(ctx context.Context, cause error, change func(), changed <-chan struct{}) {
	slog.Error("NetworkPolicies are not enforced", "component", Name, "err", cause)
	c.Note("NetworkPolicies are not enforced", fmt.Sprintf("%v; install the package nftables", cause))
	seen, stop := watch(ctx, c.kube, change)
	defer stop()
	told := make(map[string]bool)
	for {
		for _, object := range seen.policies.List() {
			np := object.(*networkingv1.NetworkPolicy)
			if !told[string(np.UID)] {
				told[string(np.UID)] = true
				c.events.Warn(np, reasonNot, fmt.Sprintf("this machine cannot enforce NetworkPolicies: %v; install the package nftables", cause))
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// follow keeps the rules equal to the compiled state. Without a change it does nothing.
func (c *Controller) follow(ctx context.Context, rules enforcer, now func() state, changed <-chan struct{}) {
	for {
		err := rules.write(ctx, compile(now()))
		if ctx.Err() != nil {
			return
		}
		var retry <-chan time.Time
		problem := ""
		if err != nil {
			problem, retry = err.Error(), time.After(retryAfter)
		}
		if c.Note(aboutRules, problem) && err != nil {
			slog.Error(aboutRules+"; will be tried again", "component", Name, "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry:
		}
	}
}

// state returns the known state.
func (c *Controller) state(seen watches, attached *attachments) state {
	f := familyOf(c.cfg.Address)
	s := state{family: f, bridge: c.cfg.Bridge, services: c.cfg.ServiceCIDR, servers: c.cfg.Servers, namespaces: make(map[string]labels.Set)}
	if s.policies = c.policies(seen.policies.List(), f); len(s.policies) == 0 {
		return s
	}
	for _, object := range seen.namespaces.List() {
		ns := object.(*corev1.Namespace)
		s.namespaces[ns.Name] = ns.Labels
	}
	pods, taken := attached.byPod()
	s.pods = podsOf(seen.pods.List(), c.cfg.NodeName, pods, taken, f)
	return s
}

// policies parses new policies, and reports on each policy the parts that cannot be enforced.
func (c *Controller) policies(objects []any, f family) []*policy {
	var policies []*policy
	present := make(map[string]bool)
	for _, object := range objects {
		np := object.(*networkingv1.NetworkPolicy)
		key := np.Namespace + "/" + np.Name
		present[key] = true
		found := c.parsed[key]
		if found.uid != string(np.UID) || found.generation != np.Generation {
			found = parsedPolicy{uid: string(np.UID), generation: np.Generation}
			var problems []string
			found.policy, problems = parse(np, f)
			for _, problem := range problems {
				c.events.Warn(np, reasonPartly, problem)
			}
			c.Note(aboutPolicy+key, strings.Join(problems, "; "))
			c.parsed[key] = found
		}
		if found.policy != nil {
			policies = append(policies, found.policy)
		}
	}
	for key := range c.parsed {
		if !present[key] {
			delete(c.parsed, key)
			c.Note(aboutPolicy+key, "")
		}
	}
	return policies
}
