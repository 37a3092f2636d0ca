package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// A crowd has 1,000 pods and 200 policies; crowdPods and crowdPolicies are the numbers per
	// namespace.
	crowdNamespaces, crowdPods, crowdPolicies = 10, 100, 20
	// beat is the time between two packets of the observed pod. Without a packet for silence, the
	// traffic has stopped.
	beat, silence = time.Millisecond, 100 * time.Millisecond
)

// policyPart measures the time from the change of a policy until it affects packets.
func policyPart() addonPart {
	what := fmt.Sprintf("with %d pods and %d policies: policy ", crowdNamespaces*crowdPods, crowdNamespaces*crowdPolicies)
	return addonPart{name: "policy", inside: measurePolicies, figures: []addonFigure{
		{what: what + "created to packets dropped, slowest", format: "%.0f ms", mote: "closed", percentile: 100, budget: 1000},
		{what: what + "deleted to packets passed, slowest", format: "%.0f ms", mote: "opened", percentile: 100, budget: 1000},
	}}
}

// policyRulesPart measures the addon's share of that time, in the worst case: all pods are on the
// node.
func policyRulesPart() addonPart {
	return addonPart{name: "rules", outside: measureRules, figures: []addonFigure{
		{what: "rules of such a cluster, all pods here: one pod changed", format: "%.0f ms", mote: "rules pod", percentile: 50},
		{what: "one policy changed", format: "%.0f ms", mote: "rules policy", percentile: 50},
		{what: "all written anew", format: "%.0f ms", mote: "rules all", percentile: 50},
	}}
}

func measurePolicies(ctx context.Context, a *addonRoom) error {
	pod, err := a.runInside(ctx, "client")
	if err != nil {
		return err
	}
	heard, err := net.ListenPacket("udp4", net.JoinHostPort(nodeAddress, "0"))
	if err != nil {
		return err
	}
	defer heard.Close()
	conns, err := pod.dial(heard.LocalAddr().String(), 1)
	if err != nil {
		return err
	}
	defer closeAll(conns)
	if err := a.gatherCrowd(ctx); err != nil {
		return fmt.Errorf("make a crowd: %w", err)
	}
	pulse := newPulse(conns[0], heard)
	defer pulse.stop()
	policies := a.client.NetworkingV1().NetworkPolicies(metav1.NamespaceDefault)
	deny := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "deny"},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}},
	}
	for range a.Rounds {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		if _, err := pulse.beatsAfter(ctx, time.Now()); err != nil {
			return err
		}
		begin := time.Now()
		if _, err := policies.Create(ctx, deny, metav1.CreateOptions{}); err != nil {
			return err
		}
		closed, err := pulse.silent(ctx)
		if err != nil {
			return err
		}
		a.add("closed", milliseconds(closed.Sub(begin))...)
		begin = time.Now()
		if err := policies.Delete(ctx, deny.Name, metav1.DeleteOptions{}); err != nil {
			return err
		}
		opened, err := pulse.beatsAfter(ctx, begin)
		if err != nil {
			return err
		}
		a.add("opened", milliseconds(opened.Sub(begin))...)
	}
	return nil
}

// pulse sends packets all the time and records when the last one arrived.
type pulse struct {
	from    net.Conn
	to      net.PacketConn
	stopped chan struct{}
	running sync.WaitGroup
	last    atomic.Int64 // nanoseconds since 1970
}

func newPulse(from net.Conn, to net.PacketConn) *pulse {
	p := &pulse{from: from, to: to, stopped: make(chan struct{})}
	p.running.Go(func() {
		tick := time.NewTicker(beat)
		defer tick.Stop()
		for {
			select {
			case <-p.stopped:
				return
			case <-tick.C:
				_, _ = p.from.Write([]byte{0}) // the test expects that some are refused
			}
		}
	})
	p.running.Go(func() {
		for buffer := make([]byte, 1); ; {
			if _, _, err := p.to.ReadFrom(buffer); err != nil {
				return // closed
			}
			p.last.Store(time.Now().UnixNano())
		}
	})
	return p
}

func (p *pulse) stop() {
	close(p.stopped)
	p.to.Close()
	p.running.Wait()
}

// silent waits until no packet arrives any more and returns when the last one arrived.
func (p *pulse) silent(ctx context.Context) (time.Time, error) {
	var last time.Time
	err := poll(ctx, func() error {
		if last = time.Unix(0, p.last.Load()); time.Since(last) < silence {
			return errors.New("packets pass")
		}
		return nil
	})
	return last, err
}

// beatsAfter waits for a packet that arrives after a moment and returns when it arrived.
func (p *pulse) beatsAfter(ctx context.Context, moment time.Time) (time.Time, error) {
	var last time.Time
	err := poll(ctx, func() error {
		if last = time.Unix(0, p.last.Load()); !last.After(moment) {
			return errors.New("no packet passes")
		}
		return nil
	})
	return last, err
}

// gatherCrowd creates pods with labels and addresses on a node that has no kubelet, and policies
// for them.
func (a *addonRoom) gatherCrowd(ctx context.Context) error {
	_, err := a.client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	errs := make([]error, crowdNamespaces)
	var running sync.WaitGroup
	for n := range crowdNamespaces {
		running.Go(func() { errs[n] = a.fillNamespace(ctx, n) })
	}
	running.Wait()
	return errors.Join(errs...)
}

func (a *addonRoom) fillNamespace(ctx context.Context, n int) error {
	name := fmt.Sprintf("crowd-%d", n)
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := a.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return err
	}
	pods, no := a.client.CoreV1().Pods(name), false
	for i := range crowdPods {
		pod := podOf(fmt.Sprintf("pod-%d", i))
		pod.Labels = map[string]string{"app": fmt.Sprintf("app-%d", i%10)}
		pod.Spec.NodeName, pod.Spec.AutomountServiceAccountToken = "elsewhere", &no
		var made *corev1.Pod
		err := poll(ctx, func() (err error) { // the namespace's account is being created
			made, err = pods.Create(ctx, pod, metav1.CreateOptions{})
			return err
		})
		if err != nil {
			return err
		}
		address := fmt.Sprintf("10.42.%d.%d", 100+n, i+2)
		made.Status.Phase, made.Status.PodIP, made.Status.PodIPs = corev1.PodRunning, address, []corev1.PodIP{{IP: address}}
		if _, err := pods.UpdateStatus(ctx, made, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	for i := range crowdPolicies {
		app := func(n int) metav1.LabelSelector {
			return metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", n%10)}}
		}
		from := app(i + 1)
		_, err := a.client.NetworkingV1().NetworkPolicies(name).Create(ctx, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("policy-%d", i)},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: app(i),
				Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: &from, NamespaceSelector: &metav1.LabelSelector{}},
				}}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
	}
	return nil
}

// benchmarkLine matches the output of `go test -bench` for a benchmark.
var benchmarkLine = regexp.MustCompile(`(?m)^BenchmarkChange/(\w+)\S*\s+\d+\s+([0-9.]+) ns/op`)

// measureRules runs the addon's own benchmark.
func measureRules(ctx context.Context, b *addonBench) (map[string]sample, error) {
	out, err := exec.CommandContext(ctx, b.program("networkpolicy"), "-test.run=^$", "-test.bench=^BenchmarkChange$",
		"-test.benchtime=10x", fmt.Sprintf("-test.count=%d", min(b.rounds, 3))).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run the policies' benchmark: %w: %s", err, strings.TrimSpace(string(out)))
	}
	seen := map[string]sample{}
	for _, match := range benchmarkLine.FindAllStringSubmatch(string(out), -1) {
		ns, err := strconv.ParseFloat(match[2], 64)
		if err != nil {
			return nil, err
		}
		key := "rules " + match[1]
		seen[key] = append(seen[key], ns/float64(time.Millisecond))
	}
	return seen, nil
}
