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

// byService is the index that finds the EndpointSlices of a Service.
const byService = "service"

// watches holds the known state of the cluster. Services, endpoints and Secrets are watched from
// the first Ingress on. A cluster without an Ingress has the cost of two small watches only.
type watches struct {
	kube    kubernetes.Interface
	change  func()
	running sync.WaitGroup

	ingresses, classes        cache.Indexer
	services, slices, secrets cache.Indexer
}

// start watches Ingresses and their classes until ctx ends. It returns when both are known.
func (w *watches) start(ctx context.Context) {
	client := w.kube.NetworkingV1().RESTClient()
	w.ingresses = w.follow(ctx, client, "ingresses", fields.Everything(), &networkingv1.Ingress{}, nil)
	w.classes = w.follow(ctx, client, "ingressclasses", fields.Everything(), &networkingv1.IngressClass{}, nil)
}

// startBackends watches the objects that Ingresses refer to. It starts these watches once.
func (w *watches) startBackends(ctx context.Context) {
	if w.services != nil {
		return
	}
	core := w.kube.CoreV1().RESTClient()
	w.services = w.follow(ctx, core, "services", fields.Everything(), &corev1.Service{}, nil)
	w.slices = w.follow(ctx, w.kube.DiscoveryV1().RESTClient(), "endpointslices", fields.Everything(), &discoveryv1.EndpointSlice{},
		cache.Indexers{byService: serviceOf})
	// Helm's releases are large and never hold certificates.
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

// slim keeps only the fields of objects that are read here. Secrets of other programs are
// confidential, and large.
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
		return object, nil // managedFields show which controller owns the status
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

// objects returns the known state for these Ingresses.
func (w *watches) objects(ingresses []*networkingv1.Ingress) objects {
	return objects{
		ingresses: ingresses,
		service: func(namespace, name string) *corev1.Service {
			return get[*corev1.Service](w.services, namespace, name)
		},
		secret: func(namespace, name string) *corev1.Secret { return get[*corev1.Secret](w.secrets, namespace, name) },
		slices: func(namespace, service string) []*discoveryv1.EndpointSlice {
			found, _ := w.slices.ByIndex(byService, namespace+"/"+service) // the index exists
			return typed[*discoveryv1.EndpointSlice](found)
		},
	}
}

func get[T any](store cache.Store, namespace, name string) T {
	found, _, _ := store.GetByKey(namespace + "/" + name) // a store returns no errors
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
