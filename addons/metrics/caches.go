package metrics

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// caches holds the objects that upstream's API and scraper read: all nodes, and the names and
// labels of running pods.
type caches struct {
	nodes cache.SharedIndexInformer
	pods  informers.GenericInformer
}

func newCaches(config *rest.Config) (*caches, error) {
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the nodes' client: %w", err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the pods' client: %w", err)
	}
	running := fields.OneTermEqualSelector("status.phase", string(corev1.PodRunning)).String()
	return &caches{
		nodes: coreinformers.NewNodeInformer(kube, 0, cache.Indexers{}),
		pods: metadatainformer.NewFilteredMetadataInformer(meta, corev1.SchemeGroupVersion.WithResource("pods"),
			metav1.NamespaceAll, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc},
			func(o *metav1.ListOptions) { o.FieldSelector = running }),
	}, nil
}

func (c *caches) nodeLister() corelisters.NodeLister {
	return corelisters.NewNodeLister(c.nodes.GetIndexer())
}

func (c *caches) allNodes() []*corev1.Node {
	nodes, err := c.nodeLister().List(labels.Everything())
	if err != nil {
		return nil // a lister of a cache returns no error
	}
	return nodes
}

// tell makes the caches notify s of changes. It is called before the caches run.
func (c *caches) tell(s *sampler) error {
	for _, informer := range []cache.SharedIndexInformer{c.nodes, c.pods.Informer()} {
		if err := informer.SetTransform(trim); err != nil {
			return fmt.Errorf("trim what is kept: %w", err)
		}
	}
	_, err := c.nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(node any) {
			if ready(node) {
				s.within(0)
			}
		},
		UpdateFunc: func(old, node any) {
			if ready(node) && !ready(old) {
				s.within(0)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("follow nodes: %w", err)
	}
	_, err = c.pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { s.within(settle) },
		// One such change is the restart of a container.
		UpdateFunc: func(any, any) { s.within(settle) },
	})
	if err != nil {
		return fmt.Errorf("follow pods: %w", err)
	}
	return nil
}

func ready(object any) bool {
	node, ok := object.(*corev1.Node)
	if !ok {
		return false
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// trim drops large fields that are not used here.
func trim(object any) (any, error) {
	if meta, ok := object.(metav1.Object); ok {
		meta.SetManagedFields(nil)
	}
	if node, ok := object.(*corev1.Node); ok {
		node.Status.Images = nil
	}
	return object, nil
}
