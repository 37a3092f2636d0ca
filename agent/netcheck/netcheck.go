// Package netcheck tests a running cluster's network from the view of pods, as a user would by
// hand: pods reach each other, Services, NodePorts, the apiserver and DNS, and the node reaches
// them too.
//
// While Run runs, it owns the namespace Namespace: two pods of the pause image, which every node of
// mote has, and a Service. They go through all steps of a pod: API, kubelet, CNI plugins,
// kube-proxy. Nothing else runs in them: the calling process listens and connects in their network
// namespaces. NetworkPolicies of other namespaces do not apply to them.
//
// Enter with Run. It removes everything before it returns. If a check was killed, the next one
// removes its leftovers, and its processes end after podLife. The caller ensures that only one Run
// runs at a time.
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
	// probeTimeout bounds the time until a path opens. kube-proxy writes rules within 100 ms on an
	// idle machine.
	probeTimeout = 10 * time.Second
	// attemptTimeout bounds one attempt. A working path answers in less than a millisecond.
	attemptTimeout = 2 * time.Second
	probeInterval  = 100 * time.Millisecond
)

// Config describes the cluster to check.
type Config struct {
	// Access holds the address of the API and the administrator's credentials.
	Access *rest.Config
	// CRISocket is containerd's socket.
	CRISocket string
	NodeName  string
	// ClusterDNS and ClusterDomain are the DNS settings that pods get.
	ClusterDNS    netip.Addr
	ClusterDomain string
	// OwnDNS and OwnProxy mean that mote's DNS and kube-proxy run. A foreign DNS is checked if a
	// Service has the address.
	OwnDNS, OwnProxy bool
}

// probe tests one path through the network.
type probe struct {
	name string
	// skip is the reason to skip the probe. With "" the probe runs.
	skip string
	try  func(ctx context.Context) (good string, err error)
	// hint is the advice for a failure.
	hint      string
	otherwise agent.State // the state if the probe fails; the zero value means StateFail
}

// Run runs every probe and returns a finding for each. When ctx ends, it cleans up and returns
// ctx's error.
func Run(ctx context.Context, c Config) ([]agent.Finding, error) {
	client, err := kubernetes.NewForConfig(c.Access)
	if err != nil {
		return []agent.Finding{failed("api", err, "see \"mote status\"")}, nil
	}
	findings, left := look(ctx, &bed{Config: c, client: client})
	if left != nil {
		findings = append(findings, failed("clean-up", left, "run mote kubectl delete namespace "+Namespace))
	}
	if ctx.Err() != nil { // all failures come from that
		return nil, fmt.Errorf("the check was interrupted: %w", errors.Join(ctx.Err(), left))
	}
	return findings, nil
}

// look does the work of Run. left is the reason why something of the check could not be removed.
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

// tryAll runs the probes at the same time, because broken paths take long.
func tryAll(ctx context.Context, probes []probe) []agent.Finding {
	out := make([]agent.Finding, len(probes))
	var all sync.WaitGroup
	for i, p := range probes {
		all.Go(func() { out[i] = p.run(ctx) })
	}
	all.Wait()
	return out
}

// run repeats the probe until it succeeds or probeTimeout has passed.
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
				continue // a probe that only warns runs once
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
