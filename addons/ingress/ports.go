package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const reasonPort = "PortInUse"

// ports holds the two ports that are served while there are Ingresses. One goroutine uses it.
type ports struct {
	plain, secure port
}

type port struct {
	number  int
	setting string
	tls     *tls.Config
	front   *front // nil while the port is not served
}

// serve opens a port that is not open yet, and closes it if a Service has it now. It returns
// the problem if the port is not served.
func (c *Controller) serve(ctx context.Context, p *port, node netip.Addr, services []*corev1.Service) (problem string, err error) {
	owner := serviceWith(services, node, int32(p.number))
	if owner == "" && p.front == nil {
		if owner, err = c.podWith(ctx, int32(p.number)); err != nil {
			return "", err
		}
	}
	if owner != "" {
		c.release(p)
		return fmt.Sprintf("port %d of the node belongs to %s; delete that, or set --%s", p.number, owner, p.setting), nil
	}
	if p.front != nil {
		return "", nil
	}
	opened, err := openFront(ctx, p.number, p.tls, c.proxy, c.cfg.Budgets, c.fail)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Sprintf("port %d of the node is in use by another program; stop it, or set --%s", p.number, p.setting), nil
	case err != nil:
		return fmt.Sprintf("cannot listen on port %d of the node: %v; set --%s", p.number, err, p.setting), nil
	}
	p.front = opened
	return "", nil
}

// release frees a port at once. Running requests get some seconds. Only Run waits for them, at its
// end.
func (c *Controller) release(p *port) {
	if p.front == nil {
		return
	}
	closing := p.front
	p.front = nil
	_ = closing.listener.Close()
	c.closing.Go(closing.close)
}

// serviceWith returns the Service that has a port of the node. kube-proxy takes all traffic to such
// a port, so none would reach mote. Both sides check first: the load balancer refuses a port that
// mote listens on. This check covers a Service that takes the port at the same moment.
func serviceWith(services []*corev1.Service, node netip.Addr, number int32) string {
	for _, s := range services {
		balanced := false
		for _, i := range s.Status.LoadBalancer.Ingress {
			balanced = balanced || i.IP == node.String()
		}
		for _, p := range s.Spec.Ports {
			if p.Protocol != corev1.ProtocolUDP && p.Protocol != corev1.ProtocolSCTP && (balanced && p.Port == number || p.NodePort == number) {
				return "the Service " + s.Namespace + "/" + s.Name
			}
		}
	}
	return ""
}

// podWith returns the pod that has a port of the node as its host port. The CNI plugin's rules take
// the traffic to it.
func (c *Controller) podWith(ctx context.Context, number int32) (string, error) {
	pods, err := c.kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return "", fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods.Items {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Spec.HostNetwork {
			continue
		}
		for _, container := range append(p.Spec.InitContainers, p.Spec.Containers...) {
			for _, own := range container.Ports {
				if own.HostPort == number && own.Protocol == corev1.ProtocolTCP && !strings.HasPrefix(own.HostIP, "127.") {
					return "the pod " + p.Namespace + "/" + p.Name, nil
				}
			}
		}
	}
	return "", nil
}

// serveAll serves both ports as far as they are available, and reports a missing port on the
// Ingresses that need it.
func (c *Controller) serveAll(ctx context.Context, node netip.Addr, seen *watches, ingresses []*networkingv1.Ingress, found problems) error {
	services := typed[*corev1.Service](seen.services.List())
	for _, p := range []*port{&c.ports.plain, &c.ports.secure} {
		problem, err := c.serve(ctx, p, node, services)
		if err != nil {
			return err
		}
		if problem == "" {
			continue
		}
		for _, i := range ingresses {
			if p.tls == nil || len(i.Spec.TLS) > 0 {
				found.add(i, reasonPort, "%s", problem)
			}
		}
	}
	return nil
}
