package ingress

import (
	"context"
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applyv1 "k8s.io/client-go/applyconfigurations/networking/v1"
	"k8s.io/client-go/kubernetes"
)

// manager is the field manager of the statuses that mote wrote.
const manager = "mote-" + Name

// owned reports whether mote wrote an Ingress' status. A status of another controller is not
// changed.
func owned(i *networkingv1.Ingress) bool {
	for _, f := range i.ManagedFields {
		if f.Manager == manager && f.Subresource == "status" {
			return true
		}
	}
	return false
}

// keepStatus writes address to the status of an Ingress, or removes mote's entry if address is not
// valid.
func keepStatus(ctx context.Context, kube kubernetes.Interface, i *networkingv1.Ingress, address netip.Addr) error {
	has := i.Status.LoadBalancer.Ingress
	status := applyv1.IngressStatus()
	switch {
	case !address.IsValid() && !owned(i):
		return nil
	case address.IsValid() && len(has) == 1 && has[0].IP == address.String():
		return nil
	case address.IsValid():
		status.WithLoadBalancer(applyv1.IngressLoadBalancerStatus().WithIngress(
			applyv1.IngressLoadBalancerIngress().WithIP(address.String())))
	}
	_, err := kube.NetworkingV1().Ingresses(i.Namespace).ApplyStatus(ctx, applyv1.Ingress(i.Name, i.Namespace).WithUID(i.UID).WithStatus(status),
		metav1.ApplyOptions{FieldManager: manager, Force: true})
	// NotFound and Conflict mean that the Ingress is gone, or that another one has its name.
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("write the address of Ingress %s: %w", title(i), err)
}
