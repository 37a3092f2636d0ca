package manifests

import (
	"context"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
)

// syncTimeout limits all first lists of new watches. They take some milliseconds on an idle
// machine.
const syncTimeout = 10 * time.Second

// watches follows the objects that files have created. It selects them by their label, with one
// watch for each resource, and collects those that are deleted.
type watches struct {
	ctx    context.Context // of all watches
	client metadata.Interface
	wake   chan struct{}

	running map[schema.GroupVersionResource]*watch

	mu   sync.Mutex // guards gone
	gone map[key]bool
}

type watch struct {
	informer cache.SharedIndexInformer
	kind     schema.GroupKind
	stop     func()
}

func newWatches(ctx context.Context, client metadata.Interface) *watches {
	return &watches{
		ctx: ctx, client: client, wake: make(chan struct{}, 1),
		running: map[schema.GroupVersionResource]*watch{}, gone: map[key]bool{},
	}
}

// follow watches exactly the resources of keys. An object that does not exist when its watch starts
// counts as deleted.
func (w *watches) follow(keys map[key]schema.GroupVersionResource) {
	wanted := make(map[schema.GroupVersionResource]schema.GroupKind)
	for k, resource := range keys {
		wanted[resource] = k.GroupKind
	}
	for resource, running := range w.running {
		if _, ok := wanted[resource]; !ok {
			running.stop()
			delete(w.running, resource)
		}
	}
	var fresh []*watch
	for resource, kind := range wanted {
		if w.running[resource] == nil {
			w.running[resource] = w.start(resource, kind)
			fresh = append(fresh, w.running[resource])
		}
	}
	ctx, cancel := context.WithTimeout(w.ctx, syncTimeout)
	defer cancel()
	for _, f := range fresh {
		if !cache.WaitForCacheSync(ctx.Done(), f.informer.HasSynced) {
			continue // its kind has just been removed
		}
		// These were deleted between their creation and the first list of the watch.
		for k := range keys {
			if k.GroupKind != f.kind {
				continue
			}
			id := cache.NewObjectName(k.namespace, k.name).String()
			if _, found, err := f.informer.GetStore().GetByKey(id); err == nil && !found {
				w.note(k)
			}
		}
	}
}

func (w *watches) start(resource schema.GroupVersionResource, kind schema.GroupKind) *watch {
	ctx, cancel := context.WithCancel(w.ctx)
	informer := metadatainformer.NewFilteredMetadataInformer(w.client, resource, metav1.NamespaceAll, 0, cache.Indexers{},
		func(o *metav1.ListOptions) { o.LabelSelector = labelPartOf }).Informer()
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(object any) {
		if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = last.Obj
		}
		if meta, ok := object.(metav1.Object); ok {
			w.note(key{kind, meta.GetNamespace(), meta.GetName()})
		}
	}})
	done := make(chan struct{})
	go func() { defer close(done); informer.RunWithContext(ctx) }()
	return &watch{informer, kind, func() { cancel(); <-done }}
}

func (w *watches) note(k key) {
	w.mu.Lock()
	w.gone[k] = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns the objects that were deleted since its last call.
func (w *watches) take() map[key]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	gone := w.gone
	w.gone = map[key]bool{}
	return gone
}

func (w *watches) stop() {
	for _, running := range w.running {
		running.stop()
	}
}
