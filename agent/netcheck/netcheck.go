// Package netcheck tries what pods expect of a running cluster's network, as a user would by hand: pods reach each
// other, Services, NodePorts, the apiserver and DNS, and so does the node.
//
// It owns the namespace Namespace while Run runs: two pods of the pause image, which every node of ours has, and a
// Service. They come the whole way of a pod: API, kubelet, CNI plugins, kube-proxy. Nothing runs in them;
// the calling process listens and connects in their network namespaces. NetworkPolicies of other namespaces
// do not meet them.
//
// Enter with Run; it takes everything away before it returns. What a killed one left, the next takes away, and its
// processes end after podLife. One Run at a time: the caller sees to that.
package netcheck

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/mote-k8s/mote/agent"
)

const (
	// probeTimeout is how long a way may take to open: kube-proxy writes rules within 100 ms on a machine that
	// has nothing else to do.
	probeTimeout = 10 * time.Second
	// attemptTimeout is for one try, which takes less than a millisecond where it works.
	attemptTimeout = 2 * time.Second
	probeInterval  = 100 * time.Millisecond
)

// Config says which cluster is looked at.
type Config struct {
	// Access is the administrator's.
	Access *rest.Config
	// CRISocket is containerd's socket.
	CRISocket string
	NodeName  string
	// ClusterDNS and ClusterDomain are what pods are told.
	ClusterDNS    netip.Addr
	ClusterDomain string
	// OwnDNS and OwnProxy say that mote's DNS and kube-proxy run. DNS of somebody else is looked at where a Service
	// has the address.
	OwnDNS, OwnProxy bool
}

// probe is one way through the network.
type probe struct {
	name string
	// skip says why it is not tried, "" that it is.
	skip string
	try  func(ctx context.Context) (good string, err error)
	// hint is what to do when it fails.
	hint      string
	otherwise agent.State // than ok; the zero value is a failure
}

// Run tries every way and returns a finding for each. When ctx ends it cleans up and returns ctx's error.
func Run(ctx context.Context, c Config) ([]agent.Finding, error) {
	client, err := kubernetes.NewForConfig(c.Access)
	if err != nil {
		return []agent.Finding{failed("api", err, "see \"mote status\"")}, nil
	}
	findings, left := look(ctx, &bed{Config: c, client: client})
	if left != nil {
		findings = append(findings, failed("clean-up", left, "run mote kubectl delete namespace "+Namespace))
	}
	if ctx.Err() != nil { // what failed, failed because of that
		return nil, fmt.Errorf("the check was interrupted: %w", errors.Join(ctx.Err(), left))
	}
	return findings, nil
}

// look is Run in the cluster. left is why something of the check is still there.
func look(ctx context.Context, b *bed) (findings []agent.Finding, left error) {
	api, err := b.client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return []agent.Finding{failed("api", err, "see \"mote status\"")}, nil
	}
	findings = []agent.Finding{{Name: "api", State: agent.StateOK, Message: "answers"}}
	missing := ""
	err = b.remove(ctx)
	started := time.Now()
	if err == nil {
		defer func() { left = b.remove(context.WithoutCancel(ctx)) }()
		err = b.make(ctx)
	}
	if err != nil {
		findings = append(findings, failed("pods", err, "see \"mote status\" and \"mote logs --component kubelet\""))
		missing = "the check's pods do not run"
	} else {
		defer b.serve()()
		findings = append(findings, agent.Finding{Name: "pods", State: agent.StateOK,
			Message: fmt.Sprintf("two pods started in %s", time.Since(started).Round(10*time.Millisecond))})
	}
	return append(findings, tryAll(ctx, b.probes(ctx, api.Spec.ClusterIP, missing))...), nil
}

// tryAll tries side by side: broken ways take their time.
func tryAll(ctx context.Context, probes []probe) []agent.Finding {
	out := make([]agent.Finding, len(probes))
	var all sync.WaitGroup
	for i, p := range probes {
		all.Go(func() { out[i] = p.run(ctx) })
	}
	all.Wait()
	return out
}

// run tries until it works or probeTimeout is over.
func (p probe) run(ctx context.Context) agent.Finding {
	if p.skip != "" {
		return agent.Finding{Name: p.name, State: agent.StateSkip, Message: p.skip}
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		good, err := p.try(ctx)
		if err == nil {
			return agent.Finding{Name: p.name, State: agent.StateOK, Message: good}
		}
		select {
		case <-tick.C:
			if ctx.Err() == nil && p.otherwise == "" {
				continue // what only warns is tried once
			}
		case <-ctx.Done():
		}
		f := failed(p.name, err, p.hint)
		if p.otherwise != "" {
			f.State = p.otherwise
		}
		return f
	}
}

func failed(name string, err error, hint string) agent.Finding {
	return agent.Finding{Name: name, State: agent.StateFail, Message: err.Error() + "; " + hint}
}
