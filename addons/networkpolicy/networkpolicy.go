// Package networkpolicy enforces networking.k8s.io/v1 NetworkPolicies on the pods of this node, by packet rules in a
// table of its own.
//
// It owns the nftables table inet mote-networkpolicy, or where nftables does not work the iptables chains MOTE-NP-* and
// the ipsets mote-*, and nothing in the cluster. ruleset.go shows the way of a packet; compile.go makes the
// rules of all that is known, each time that something changes, and nft.go writes what differs. The rules stay when mote ends: pods go on, and so does what guards them.
//
// Enter with New and run the Controller as a component; Remove takes the rules away. README.md says what was
// decided and why.
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

// Reasons of events on NetworkPolicies.
const (
	reasonPartly = "NotEnforceable"
	reasonNot    = "NotEnforced"
)

// What `mote status` tells of.
const (
	aboutPolicy = "NetworkPolicy "
	aboutRules  = "the rules are not up to date"
)

// retryAfter is between attempts to write rules that the kernel did not take.
const retryAfter = time.Second

// Config says whose traffic is judged. It is never changed after New.
type Config struct {
	Access   api.Access
	NodeName string
	// Bridge is the interface that this node's pods are behind, Address its own, which tells the family.
	Bridge  string
	Address netip.Addr
	// ServiceCIDR has the addresses of Services.
	ServiceCIDR netip.Prefix
	// Attachments is the directory where the CNI library notes the results of its plugins.
	Attachments string
	// Servers are parts of this process that policies know as pods.
	Servers []api.Server
}

// Controller is the addon. It implements component.Component, and component.Troubled: which policies are not in force.
type Controller struct {
	api.Troubles
	cfg    Config
	kube   kubernetes.Interface
	events *api.Events
	ready  chan struct{}

	// parsed are the policies by namespace/name, with the generation that was parsed. Used by Run only.
	parsed map[string]parsedPolicy
}

type parsedPolicy struct {
	uid        string
	generation int64
	policy     *policy // nil when it is not in force
}

// New makes the controller.
func New(cfg Config) (*Controller, error) {
	kube, err := kubernetes.NewForConfig(cfg.Access.Admin(Name))
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	return &Controller{cfg: cfg, kube: kube, ready: make(chan struct{}), parsed: make(map[string]parsedPolicy)}, nil
}

// enforcer holds a ruleset in the kernel. What it holds stays there.
type enforcer interface {
	// present says whether a former life's rules are there.
	present(context.Context) (bool, error)
	write(context.Context, *ruleset) error
	// remove takes away all that is there.
	remove(context.Context) error
}

// open is nftables where it works, and iptables with ipsets otherwise.
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

// Remove takes the rules away. What does not work here, such as ip6tables on a kernel without IPv6, has never written
// a rule.
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

// Ready implements component.Component: no pod that starts now can send a packet that no policy judges. That holds
// before the policies are known, because until then no packet of such a pod passes.
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

// close lets no packet of a pod pass until the policies are known, if no rules are there: the machine has just
// booted, and what pods it starts shall not be faster than the rules. Rules that are there were left by a former life
// and go on as they are. What fails is tried again until ctx ends.
func (c *Controller) close(ctx context.Context, rules enforcer) error {
	first := false // no former life's rules are there, but maybe a part of those that we failed to write
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

// standBy is for a machine that has neither nftables nor iptables. The cluster works, and says on each policy that it does not.
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

// follow keeps the rules what the state says they should be. Without a change it does nothing.
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

// state is what is known now.
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

// policies parses what is new, and says on each policy what of it cannot be put in force.
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
