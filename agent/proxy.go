package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	watchtools "k8s.io/client-go/tools/watch"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	"k8s.io/kubernetes/pkg/cluster/ports"
	"k8s.io/kubernetes/pkg/kubelet/qos"
)

// runProxy runs kube-proxy until ctx ends. Its rules stay, so that the Services of running pods go
// on working. Upstream never returns: its goroutines end with the process.
func runProxy(ctx context.Context, c Config, ready func()) error {
	if c.Proxy == ProxyNone {
		ready()
		<-ctx.Done()
		return nil
	}
	mode, err := chooseProxyMode(c.Proxy)
	if err != nil {
		return err
	}
	if err := recordFootprint(c, mode); err != nil {
		return err
	}
	h, err := detectHost()
	if err != nil {
		return err
	}
	healthz, err := freeLoopbackPort()
	if err != nil {
		return err
	}
	opts, ports, err := newProxyOptions(c, mode, h, healthz)
	if err != nil {
		return err
	}
	servers, err := ports.open(ctx, c.Budgets, mode, healthz)
	if err != nil {
		return err
	}
	defer servers.close()
	if err := waitForNode(ctx, c); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- opts.Run(ctx) }()
	probed := make(chan struct{})
	probeCtx, stopProbe := context.WithCancel(ctx)
	go func() {
		defer close(probed)
		if waitHealthy(probeCtx, "http://"+healthz+"/healthz", rulesWritten) == nil {
			ready()
		}
	}()
	defer func() { stopProbe(); <-probed }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-servers.failed:
		return err
	case err := <-failed:
		if err == nil {
			err = errors.New("it ended by itself")
		}
		return fmt.Errorf("run kube-proxy: %w", err)
	}
}

// rulesWritten checks the answer of kube-proxy's health page. The page reports "healthy" from the
// start. It reports the time of each address family's rules only after they were written.
func rulesWritten(body []byte) bool {
	var health struct {
		Status map[string]json.RawMessage `json:"status"`
	}
	return json.Unmarshal(body, &health) == nil && len(health.Status) > 0
}

// newProxyOptions makes kube-proxy's whole configuration and returns the ports that the user sees.
// kube-proxy itself serves its health on the address healthz. The options can only be set as flags.
func newProxyOptions(c Config, mode string, h host, healthz string) (opts *app.Options, published proxyPorts, err error) {
	opts = app.NewOptions()
	set := pflag.NewFlagSet("kube-proxy", pflag.ContinueOnError)
	set.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	opts.AddFlags(set)
	upstream, err := newUpstreamPorts(set)
	if err != nil {
		return nil, published, err
	}
	args := []string{
		"kubeconfig=" + c.credential("kube-proxy.kubeconfig"),
		"hostname-override=" + c.NodeName,
		"proxy-mode=" + mode,
		fmt.Sprintf("healthz-bind-address=%s:%d", c.NodeIP, ports.ProxyHealthzPort),
		"metrics-bind-address=" + c.metricsAddress().String(),
		// With this, a port in use is an error at the start and not a line in the log every 5 s.
		"bind-address-hard-fail=true",
		"cluster-cidr=" + c.ClusterCIDR.String(),
		// In nftables mode the default is only the node's primary address, which is the bridge's.
		"nodeport-addresses=0.0.0.0/0,::/0",
		// Keep the kernel's own limits: conntrack's maximum cannot be written in a network
		// namespace, and the timeouts belong to the machine's operator.
		"conntrack-max-per-core=0",
		"conntrack-min=0",
		"conntrack-tcp-timeout-established=0s",
		"conntrack-tcp-timeout-close-wait=0s",
		// This bounds the time that a change waits for further changes. Upstream's second is meant
		// for thousands of Services.
		"iptables-min-sync-period=100ms",
		fmt.Sprintf("oom-score-adj=%d", h.lowestOOMScore(qos.KubeProxyOOMScoreAdj)),
	}
	for _, arg := range c.ProxyArgs {
		name, _, _ := strings.Cut(strings.ReplaceAll(arg, "_", "-"), "=")
		if slices.Contains([]string{"config", "cleanup", "write-config-to", "init-only"}, name) {
			return nil, published, fmt.Errorf("kube-proxy argument %s: it would not start the proxy that mote configures", name)
		}
	}
	if err := setFlags("kube-proxy", set, append(args, c.ProxyArgs...)); err != nil {
		return nil, published, err
	}
	if err := opts.Complete(set); err != nil {
		return nil, published, fmt.Errorf("kube-proxy arguments: %w", err)
	}
	if err := opts.Validate(); err != nil {
		return nil, published, fmt.Errorf("kube-proxy arguments: %w", err)
	}
	published, err = upstream.move(healthz)
	return opts, published, err
}

// waitForNode watches the node object until it has an address. kube-proxy would ask for it once a
// second.
func waitForNode(ctx context.Context, c Config) error {
	config, err := clientcmd.BuildConfigFromFlags("", c.credential("kube-proxy.kubeconfig"))
	if err != nil {
		return fmt.Errorf("read kube-proxy's credentials: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make kube-proxy's client: %w", err)
	}
	nodes := client.CoreV1().Nodes()
	one := fields.OneTermEqualSelector("metadata.name", c.NodeName).String()
	lister := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = one
			return nodes.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = one
			return nodes.Watch(ctx, options)
		},
	}
	_, err = watchtools.UntilWithSync(ctx, lister, &corev1.Node{}, nil, func(event watch.Event) (bool, error) {
		node, ok := event.Object.(*corev1.Node)
		return ok && len(node.Status.Addresses) > 0, nil
	})
	if err != nil {
		return fmt.Errorf("wait for node %s: %w", c.NodeName, err)
	}
	return nil
}
