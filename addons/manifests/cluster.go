package manifests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// fieldManager owns the fields that manifests set.
const fieldManager = "mote-manifests"

// key names an object, independent of its version.
type key struct {
	schema.GroupKind
	namespace, name string
}

func (k key) String() string {
	if k.namespace == "" {
		return k.Kind + " " + k.name
	}
	return fmt.Sprintf("%s %s/%s", k.Kind, k.namespace, k.name)
}

// cluster applies and removes single objects.
type cluster struct {
	objects dynamic.Interface
	meta    metadata.Interface
	mapper  meta.ResettableRESTMapper
}

func newCluster(config *rest.Config) (*cluster, error) {
	plain := rest.CopyConfig(config)
	plain.ContentType, plain.AcceptContentTypes = "", "" // unstructured objects are JSON
	objects, err := dynamic.NewForConfig(plain)
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	lists, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	found, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	return &cluster{objects, lists, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(found))}, nil
}

// resolve finds the resource of an object. It sets the namespace "default" on a namespaced object
// that names none, like kubectl.
func (c *cluster) resolve(u *unstructured.Unstructured) (key, schema.GroupVersionResource, error) {
	gvk := u.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return key{}, schema.GroupVersionResource{}, err
	}
	k := key{gvk.GroupKind(), u.GetNamespace(), u.GetName()}
	switch namespaced := mapping.Scope.Name() == meta.RESTScopeNameNamespace; {
	case namespaced && k.namespace == "":
		k.namespace = metav1.NamespaceDefault
	case !namespaced:
		k.namespace = ""
	}
	u.SetNamespace(k.namespace)
	return k, mapping.Resource, nil
}

// adopted reports whether an existing object existed before any of mote's sets had it. ours reports
// whether an id belongs to one of mote's sets. An object of a foreign set is an error.
func adopted(there *metav1.PartialObjectMetadata, ours func(id string) bool) (bool, error) {
	id, labelled := there.Labels[labelPartOf]
	if labelled && !ours(id) {
		return false, fmt.Errorf("it belongs to another apply set, %s; remove it from that, or its label %s", id, labelPartOf)
	}
	return !labelled || there.Annotations[annotationAdopted] != "", nil
}

// apply writes an object as a member of a set. ours reports the sets that the object may be taken
// from.
func (c *cluster) apply(ctx context.Context, resource schema.GroupVersionResource, u *unstructured.Unstructured, id string, ours func(id string) bool) error {
	there, err := c.meta.Resource(resource).Namespace(u.GetNamespace()).Get(ctx, u.GetName(), metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	before := false
	if err == nil {
		if before, err = adopted(there, ours); err != nil {
			return err
		}
	}
	u = u.DeepCopy()
	annotations := u.GetAnnotations()
	delete(annotations, annotationAdopted)
	if before {
		if annotations == nil {
			annotations = make(map[string]string)
		}
		annotations[annotationAdopted] = "true"
	}
	u.SetAnnotations(annotations)
	labels := u.GetLabels()
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[labelPartOf] = id
	u.SetLabels(labels)
	// These fields are present in a copy of a live object and cannot be applied.
	u.SetManagedFields(nil)
	u.SetResourceVersion("")
	u.SetUID("")
	_, err = c.objects.Resource(resource).Namespace(u.GetNamespace()).Apply(ctx, u.GetName(), u,
		metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// members lists the objects of a set that are in the cluster.
func (c *cluster) members(ctx context.Context, s *set) (map[key]metav1.PartialObjectMetadata, error) {
	found := make(map[key]metav1.PartialObjectMetadata)
	for kind := range s.kinds {
		mapping, err := c.mapper.RESTMapping(kind)
		if meta.IsNoMatchError(err) {
			continue // its definition is gone, and all its objects with it
		}
		if err != nil {
			return nil, fmt.Errorf("find kind %s: %w", kind, err)
		}
		list, err := c.meta.Resource(mapping.Resource).List(ctx, metav1.ListOptions{LabelSelector: labelPartOf + "=" + s.id})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", mapping.Resource.GroupResource(), err)
		}
		for _, object := range list.Items {
			found[key{kind, object.Namespace, object.Name}] = object
		}
	}
	return found, nil
}

// drop removes one object of a set. It only releases an object that existed before. It returns a
// text that says which.
func (c *cluster) drop(ctx context.Context, resource schema.GroupVersionResource, k key, member *metav1.PartialObjectMetadata) (string, error) {
	client, did := c.meta.Resource(resource).Namespace(k.namespace), k.String()
	var err error
	if member.Annotations[annotationAdopted] != "" {
		did += " (left: it was there before)"
		// With another UID the patch causes a conflict.
		patch := fmt.Sprintf(`{"metadata":{"uid":%q,"labels":{%q:null},"annotations":{%q:null}}}`, member.UID, labelPartOf, annotationAdopted)
		_, err = client.Patch(ctx, k.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{FieldManager: fieldManager})
	} else {
		background := metav1.DeletePropagationBackground
		err = client.Delete(ctx, k.name, metav1.DeleteOptions{
			Preconditions: &metav1.Preconditions{UID: &member.UID}, PropagationPolicy: &background,
		})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return "", fmt.Errorf("remove %s: %w", k, err)
	}
	return did, nil
}

// pruned lists the results for objects that are not named any more.
type pruned struct {
	removed []string
	left    []string // with the file that may name them
}

// prune removes the objects of a set that no file names, dependents first. It keeps an object that
// a file that cannot be parsed may name, because the object may have been moved there.
func (c *cluster) prune(ctx context.Context, s *set, named claims) (p pruned, err error) {
	members, err := c.members(ctx, s)
	if err != nil {
		return p, err
	}
	var gone []key
	for k := range members {
		if named.keys[k] {
			continue
		}
		if file := named.doubt(k); file != "" {
			p.left = append(p.left, fmt.Sprintf("%s, which %s may name", k, file))
			continue
		}
		gone = append(gone, k)
	}
	slices.Sort(p.left)
	slices.SortFunc(gone, func(a, b key) int {
		return cmp.Or(cmp.Compare(rank(b.GroupKind), rank(a.GroupKind)), strings.Compare(a.String(), b.String()))
	})
	for _, k := range gone {
		mapping, err := c.mapper.RESTMapping(k.GroupKind)
		if err != nil {
			return p, fmt.Errorf("remove %s: %w", k, err)
		}
		member := members[k]
		did, err := c.drop(ctx, mapping.Resource, k, &member)
		if err != nil {
			return p, err
		}
		p.removed = append(p.removed, did)
	}
	return p, nil
}

// These are ranks of kinds. Objects that others need are applied first and removed last.
const (
	rankNamespace = iota
	rankDefinition
	rankRights
	rankOther
	rankWebhook
)

func rank(kind schema.GroupKind) int {
	switch kind.Group + "/" + kind.Kind {
	case "/Namespace":
		return rankNamespace
	case "apiextensions.k8s.io/CustomResourceDefinition":
		return rankDefinition
	case "/ServiceAccount", "/Secret", "/ConfigMap", "/PersistentVolume", "/PersistentVolumeClaim", "/Service", "/LimitRange", "/ResourceQuota":
		return rankRights
	case "admissionregistration.k8s.io/ValidatingWebhookConfiguration", "admissionregistration.k8s.io/MutatingWebhookConfiguration",
		"apiregistration.k8s.io/APIService":
		return rankWebhook
	}
	switch kind.Group {
	case "rbac.authorization.k8s.io", "scheduling.k8s.io", "storage.k8s.io":
		return rankRights
	}
	return rankOther
}

// explain returns an error for people. The apiserver's message about a Secret may quote the Secret.
func explain(k key, err error) error {
	var status apierrors.APIStatus
	switch {
	case k.Kind == "Secret" && k.Group == "" && errors.As(err, &status):
		fields := []string{fmt.Sprintf("the API does not take it (%d %s)", status.Status().Code, status.Status().Reason)}
		if details := status.Status().Details; details != nil {
			for _, cause := range details.Causes {
				fields = append(fields, cause.Field)
			}
		}
		return fmt.Errorf("%s: %s; its values are not told", k, strings.Join(fields, ", "))
	case meta.IsNoMatchError(err):
		return fmt.Errorf("%s: the cluster knows no such kind: %w", k, err)
	}
	return fmt.Errorf("%s: %w", k, err)
}
