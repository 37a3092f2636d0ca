package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/images"
)

type policyCase struct {
	name   string
	specs  []string
	expect string
}

func webFrom(rule string) string {
	return `{podSelector: {matchLabels: {app: web}}, ingress: [` + rule + `]}`
}

func clientTo(rule string) string {
	return `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [` + rule + `]}`
}

// policyCases returns rules of every kind, each seen from a client that is allowed and from one
// that is not. SCTP, which some kernels lack, is in the packet tests of addons/networkpolicy.
func policyCases() []policyCase {
	const name = "web.red.svc.cluster.local"
	return []policyCase{
		{"none", nil, `
			client web tcp 80 yes
			client 10.43.0.20 tcp 80 yes
			other web udp 5353 yes
			outside 192.0.2.1 tcp 30080 yes
			client outside tcp 80 yes
			client web.red.svc.cluster.local dns - yes`},
		{"default deny", []string{denyRed}, `
			client web tcp 80 no
			client web udp 5353 no
			other web tcp 80 no
			outside 192.0.2.1 tcp 30080 no
			client outside tcp 80 no
			client node tcp 6443 no
			client ` + name + ` dns - no
			other outside tcp 80 yes
			other ` + name + ` dns - yes`},
		{"deny ingress", []string{denyWeb}, `
			client web tcp 80 no
			client 10.43.0.20 tcp 80 no
			outside 192.0.2.1 tcp 30080 no
			web outside tcp 80 yes
			web 10.43.0.20 tcp 80 yes
			client db tcp 80 yes
			client 10.43.0.21 tcp 80 refused`}, // it has no endpoints
		{"pod selector", []string{webFrom(`{from: [{podSelector: {matchLabels: {app: client}}}]}`)}, `
			db web tcp 80 no
			other web tcp 80 no
			outside 192.0.2.1 tcp 30080 no
			client web tcp 80 yes
			client web udp 5353 yes
			client 10.43.0.20 tcp 80 yes`},
		{"namespace selector", []string{webFrom(`{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}`)}, `
			client web tcp 80 no
			outside 192.0.2.1 tcp 30080 no
			other web tcp 80 yes`},
		{"both selectors", []string{webFrom(`{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blue}},
			podSelector: {matchLabels: {app: client}}}]}`)}, `
			client web tcp 80 no
			other web tcp 80 no`},
		{"either selector", []string{webFrom(`{from: [{namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: db}}}]}`)}, `
			client web tcp 80 no
			db web tcp 80 yes
			other web tcp 80 yes`},
		{"block", []string{webFrom(`{from: [{ipBlock: {cidr: 192.0.2.0/24}}]}`)}, `
			client web tcp 80 no
			outside web tcp 80 yes
			outside 192.0.2.1 tcp 30080 yes`},
		{"block with exception", []string{webFrom(`{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/25]}}]}`)}, `
			outside web tcp 80 no
			client web tcp 80 yes`},
		{"ports", []string{webFrom(`{ports: [{port: 80}, {protocol: UDP, port: 5353}]}`)}, `
			client web tcp 81 no
			client web tcp 8080 no
			client web tcp 80 yes
			client web udp 5353 yes`},
		{"end port", []string{webFrom(`{ports: [{port: 80, endPort: 100}]}`)}, `
			client web tcp 8080 no
			client web tcp 80 yes
			client web tcp 81 yes`},
		{"named port", []string{`{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: http}]}]}`}, `
			client web tcp 81 no
			client db tcp 8080 no
			client web tcp 8080 yes
			client db tcp 81 yes`},
		{"named port of peers", []string{clientTo(`{to: [{podSelector: {}}], ports: [{port: http}]}`)}, `
			client web tcp 81 no
			client db tcp 8080 no
			client web tcp 8080 yes
			client db tcp 81 yes`},
		{"egress to pods", []string{clientTo(`{to: [{podSelector: {matchLabels: {app: web}}}]}`)}, `
			client db tcp 80 no
			client outside tcp 80 no
			client ` + name + ` dns - no
			client web tcp 80 yes
			client 10.43.0.20 tcp 80 yes`},
		{"egress to a block", []string{clientTo(`{to: [{ipBlock: {cidr: 192.0.2.2/32}}]}`)}, `
			client web tcp 80 no
			client outside tcp 80 yes
			client outside udp 5353 yes`},
		{"DNS", []string{denyRed, `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{
			namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}},
			podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]}`}, `
			client web tcp 80 no
			client node tcp 6443 no
			client ` + name + ` dns - yes`},
		{"both sides", []string{denyRed, webFrom(`{from: [{podSelector: {matchLabels: {app: client}}}]}`), clientTo(`{to: [{podSelector: {}}]}`)}, `
			client db tcp 80 no
			db web tcp 80 no
			client web tcp 80 yes`},
	}
}

// testPolicyScale measures how long a change takes with 1,000 pods and 200 policies. The pods have
// labels and addresses, but do not run: their node does not exist.
func testPolicyScale(t *testing.T, l *policyLab) {
	const namespaces, pods, policies = 10, 100, 20 // pods and policies are per namespace
	l.apply(t)
	var running sync.WaitGroup
	for n := range namespaces {
		running.Go(func() { l.crowd(t, fmt.Sprintf("crowd-%d", n), n, pods, policies) })
	}
	running.Wait()
	if t.Failed() {
		return
	}
	var took []time.Duration
	for range 10 {
		l.expect(t, "client web tcp 80 yes")
		begin := time.Now()
		l.apply(t, denyWeb)
		cluster.Wait(t, inForce, "the policy", func() error { return l.see("client web tcp 80 no") })
		// The last probe was denied for the whole time of its wait.
		took = append(took, time.Since(begin)-300*time.Millisecond)
		l.apply(t)
	}
	slices.Sort(took)
	t.Logf("with %d pods and %d policies a change is in force after %v (median), %v (longest)",
		namespaces*pods, namespaces*policies, took[len(took)/2], took[len(took)-1])
	if longest := took[len(took)-1]; longest > 5*time.Second {
		t.Errorf("a change took %v", longest)
	}
	for n := range namespaces {
		l.h.Kubectl(t, "delete", "pods", "-n", fmt.Sprintf("crowd-%d", n), "--all", "--force", "--grace-period=0", "--wait=false")
		l.h.Kubectl(t, "delete", "namespace", fmt.Sprintf("crowd-%d", n), "--wait=false")
	}
}

// crowd fills a namespace.
func (l *policyLab) crowd(t *testing.T, namespace string, number, pods, policies int) {
	t.Helper()
	ctx := t.Context()
	core := l.client.CoreV1()
	_, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil {
		t.Error(err)
		return
	}
	// The admission of pods waits for the account, but not as long as the controller takes on a
	// busy machine.
	if err := l.awaitAccount(ctx, namespace); err != nil {
		t.Error(err)
		return
	}
	no := false
	for i := range pods {
		pod, err := core.Pods(namespace).Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", i), Labels: map[string]string{"app": fmt.Sprintf("app-%d", i%10)}},
			Spec: corev1.PodSpec{
				NodeName: "elsewhere", AutomountServiceAccountToken: &no, ServiceAccountName: "default",
				Containers: []corev1.Container{{Name: "peer", Image: images.PeerName}},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		address := fmt.Sprintf("10.42.%d.%d", 100+number, i+2)
		pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, address, []corev1.PodIP{{IP: address}}
		if _, err := core.Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
			return
		}
	}
	for i := range policies {
		app := func(n int) metav1.LabelSelector {
			return metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("app-%d", n%10)}}
		}
		from := app(i + 1)
		_, err := l.client.NetworkingV1().NetworkPolicies(namespace).Create(ctx, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("policy-%d", i)},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: app(i),
				Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{
					{PodSelector: &from, NamespaceSelector: &metav1.LabelSelector{}},
				}}},
			},
		}, metav1.CreateOptions{})
		if err != nil && !strings.Contains(err.Error(), "exists") {
			t.Error(err)
			return
		}
	}
}

// awaitAccount waits for a new namespace's default service account.
func (l *policyLab) awaitAccount(ctx context.Context, namespace string) error {
	err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, podTimeout, true, func(ctx context.Context) (bool, error) {
		_, err := l.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("wait for the default service account of namespace %s: %w", namespace, err)
	}
	return nil
}
