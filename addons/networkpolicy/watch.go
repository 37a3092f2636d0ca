package networkpolicy

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// hashAnnotation holds a static pod's UID as the kubelet and the CNI plugins use it. The object of
// the pod has another UID.
const hashAnnotation = "kubernetes.io/config.hash"

// watches holds the parts of the API's state that are needed here.
type watches struct {
	policies, pods, namespaces cache.Store
}

// watch follows the API until ctx ends. It returns when all lists have arrived once. stop ends the
// watches and waits for their end.
func watch(ctx context.Context, client kubernetes.Interface, changed func()) (w watches, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	var synced []cache.InformerSynced
	follow := func(getter rest.Interface, resource string, kind runtime.Object, trim cache.TransformFunc, same func(a, b any) bool) cache.Store {
		store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
			ListerWatcher: cache.NewListWatchFromClient(getter, resource, metav1.NamespaceAll, fields.Everything()),
			ObjectType:    kind,
			Transform:     trim,
			Handler: cache.ResourceEventHandlerFuncs{
				AddFunc: func(any) { changed() },
				UpdateFunc: func(old, now any) {
					if !same(old, now) {
						changed()
					}
				},
				DeleteFunc: func(any) { changed() },
			},
		})
		running.Go(func() { informer.RunWithContext(ctx) })
		synced = append(synced, informer.HasSynced)
		return store
	}
	w.policies = follow(client.NetworkingV1().RESTClient(), "networkpolicies", &networkingv1.NetworkPolicy{}, trimPolicy, samePolicy)
	w.pods = follow(client.CoreV1().RESTClient(), "pods", &corev1.Pod{}, trimPod, samePod)
	w.namespaces = follow(client.CoreV1().RESTClient(), "namespaces", &corev1.Namespace{}, trimNamespace, sameNamespace)
	cache.WaitForCacheSync(ctx.Done(), synced...)
	return w, func() { cancel(); running.Wait() }
}

func trimPolicy(object any) (any, error) {
	if p, ok := object.(*networkingv1.NetworkPolicy); ok {
		p.ManagedFields = nil
	}
	return object, nil
}

func samePolicy(a, b any) bool {
	before, now := a.(*networkingv1.NetworkPolicy), b.(*networkingv1.NetworkPolicy)
	return before.Generation == now.Generation && before.UID == now.UID
}

func trimNamespace(object any) (any, error) {
	if ns, ok := object.(*corev1.Namespace); ok {
		return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: ns.Labels}}, nil
	}
	return object, nil
}

func sameNamespace(a, b any) bool {
	return labels.Equals(a.(*corev1.Namespace).Labels, b.(*corev1.Namespace).Labels)
}

// trimPod keeps only the fields of a pod that rules depend on. Most of a pod's memory is in other
// fields.
func trimPod(object any) (any, error) {
	p, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	kept := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Labels: p.Labels},
		Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: p.Status.Phase, PodIPs: p.Status.PodIPs},
	}
	if hash, ok := p.Annotations[hashAnnotation]; ok {
		kept.Annotations = map[string]string{hashAnnotation: hash}
	}
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if len(c.Ports) > 0 {
			kept.Spec.Containers = append(kept.Spec.Containers, corev1.Container{Ports: c.Ports})
		}
	}
	return kept, nil
}

func samePod(a, b any) bool {
	before, now := a.(*corev1.Pod), b.(*corev1.Pod)
	return before.UID == now.UID && before.Spec.NodeName == now.Spec.NodeName && ended(before) == ended(now) &&
		slices.Equal(before.Status.PodIPs, now.Status.PodIPs) && labels.Equals(before.Labels, now.Labels)
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// podsOf returns the pods that have their own addresses. On this node the CNI plugins' results take
// priority: an address may be given to a new pod while the object of the old one still exists.
func podsOf(objects []any, node string, attached map[string][]attachment, taken map[netip.Addr]bool, f family) []*pod {
	var pods []*pod
	for _, object := range objects {
		p := object.(*corev1.Pod)
		if p.Spec.HostNetwork || ended(p) {
			continue
		}
		known := &pod{namespace: p.Namespace, labels: p.Labels, here: p.Spec.NodeName == node}
		for _, a := range attached[p.Namespace+"/"+p.Name] {
			if a.uid == string(p.UID) || a.uid == p.Annotations[hashAnnotation] {
				known.addresses = append(known.addresses, a.addresses...)
			}
		}
		for _, ip := range p.Status.PodIPs {
			if a, err := netip.ParseAddr(ip.IP); err == nil && !taken[a] {
				known.addresses = append(known.addresses, a)
			}
		}
		known.addresses = slices.DeleteFunc(known.addresses, func(a netip.Addr) bool { return !f.has(a) })
		if len(known.addresses) == 0 {
			continue
		}
		for _, c := range p.Spec.Containers {
			for _, port := range c.Ports {
				if port.Name != "" {
					known.ports = append(known.ports, namedPort{port.Name, strings.ToLower(string(port.Protocol)), port.ContainerPort})
				}
			}
		}
		pods = append(pods, known)
	}
	return pods
}
