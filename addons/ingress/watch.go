package ingress

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// byService finds the EndpointSlices of a Service.
const byService = "service"

// watches are what is known of the cluster. Services, endpoints and Secrets are watched from the first Ingress on:
// a cluster without one pays for two small watches.
type watches struct {
	kube    kubernetes.Interface
	change  func()
	running sync.WaitGroup

	ingresses, classes        cache.Indexer
	services, slices, secrets cache.Indexer
}

// start follows Ingresses and their classes until ctx ends, and returns when they are known.
func (w *watches) start(ctx context.Context) {
	client := w.kube.NetworkingV1().RESTClient()
	w.ingresses = w.follow(ctx, client, "ingresses", fields.Everything(), &networkingv1.Ingress{}, nil)
	w.classes = w.follow(ctx, client, "ingressclasses", fields.Everything(), &networkingv1.IngressClass{}, nil)
}

// startBackends follows what Ingresses lead to, once.
func (w *watches) startBackends(ctx context.Context) {
	if w.services != nil {
		return
	}
	core := w.kube.CoreV1().RESTClient()
	w.services = w.follow(ctx, core, "services", fields.Everything(), &corev1.Service{}, nil)
	w.slices = w.follow(ctx, w.kube.DiscoveryV1().RESTClient(), "endpointslices", fields.Everything(), &discoveryv1.EndpointSlice{},
		cache.Indexers{byService: serviceOf})
	// Helm's releases are large and never certificates.
	w.secrets = w.follow(ctx, core, "secrets", fields.OneTermNotEqualSelector("type", "helm.sh/release.v1"), &corev1.Secret{}, nil)
}

func (w *watches) follow(
	ctx context.Context, client rest.Interface, resource string, selector fields.Selector, of runtime.Object, indexers cache.Indexers,
) cache.Indexer {
	if indexers == nil {
		indexers = cache.Indexers{}
	}
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: cache.NewListWatchFromClient(client, resource, metav1.NamespaceAll, selector),
		ObjectType:    of, Indexers: indexers, Transform: slim,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { w.change() },
			UpdateFunc: func(any, any) { w.change() },
			DeleteFunc: func(any) { w.change() },
		},
	})
	w.running.Go(func() { informer.RunWithContext(ctx) })
	cache.WaitForCacheSync(ctx.Done(), informer.HasSynced)
	return store.(cache.Indexer)
}

// slim keeps of objects what is read here: other programs' Secrets are nobody's business, and large.
func slim(object any) (any, error) {
	if secret, ok := object.(*corev1.Secret); ok {
		certificate, key := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
		secret.Data = nil
		if len(certificate) > 0 || len(key) > 0 {
			secret.Data = map[string][]byte{corev1.TLSCertKey: certificate, corev1.TLSPrivateKeyKey: key}
		}
		secret.Annotations = nil
	}
	if _, ok := object.(*networkingv1.Ingress); ok {
		return object, nil // whose status is whose is read from managedFields
	}
	if accessor, err := meta.Accessor(object); err == nil {
		accessor.SetManagedFields(nil)
	}
	return object, nil
}

func serviceOf(object any) ([]string, error) {
	slice := object.(*discoveryv1.EndpointSlice)
	return []string{slice.Namespace + "/" + slice.Labels[discoveryv1.LabelServiceName]}, nil
}

// objects is what is known now about these Ingresses.
func (w *watches) objects(ingresses []*networkingv1.Ingress) objects {
	return objects{
		ingresses: ingresses,
		service: func(namespace, name string) *corev1.Service {
			return get[*corev1.Service](w.services, namespace, name)
		},
		secret: func(namespace, name string) *corev1.Secret { return get[*corev1.Secret](w.secrets, namespace, name) },
		slices: func(namespace, service string) []*discoveryv1.EndpointSlice {
			found, _ := w.slices.ByIndex(byService, namespace+"/"+service) // the index is there
			return typed[*discoveryv1.EndpointSlice](found)
		},
	}
}

func get[T any](store cache.Store, namespace, name string) T {
	found, _, _ := store.GetByKey(namespace + "/" + name) // a store has no errors
	object, _ := found.(T)
	return object
}

func typed[T any](objects []any) []T {
	var all []T
	for _, object := range objects {
		all = append(all, object.(T))
	}
	return all
}
