package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// ManagedBy is the label that names the owner of an object, and Mote is its value for mote's
// objects.
const (
	ManagedBy = "app.kubernetes.io/managed-by"
	Mote      = "mote"
)

// ErrForeign is wrapped by Apply's errors for foreign objects.
var ErrForeign = errors.New("it is not mote's")

// Object is one object that an addon owns.
type Object struct {
	Resource schema.GroupVersionResource
	// Object is a typed object with kind, name and, if it has one, namespace. Apply adds the label.
	Object runtime.Object
	// Once makes Apply keep an object that exists, because users may edit it.
	Once bool
}

// Objects manages an addon's own objects in the cluster.
type Objects struct {
	addon  string
	client dynamic.Interface
}

// NewObjects makes the manager of an addon's objects.
func NewObjects(config *rest.Config, addon string) (*Objects, error) {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = "", "" // unstructured objects are JSON
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", addon, err)
	}
	return &Objects{addon, client}, nil
}

// Check returns an error if one of the objects exists and is foreign. So Apply does not stop half
// way.
func (o *Objects) Check(ctx context.Context, objects ...Object) error {
	for _, object := range objects {
		u, err := toUnstructured(object.Object)
		if err != nil {
			return err
		}
		if _, err := o.present(ctx, object.Resource, u); err != nil {
			return err
		}
	}
	return nil
}

// present returns the object with u's name if it exists and is mote's, or nil if there is none.
func (o *Objects) present(ctx context.Context, resource schema.GroupVersionResource, u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	present, err := o.client.Resource(resource).Namespace(u.GetNamespace()).Get(ctx, u.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("keep %s: %w", title(u), err)
	case present.GetLabels()[ManagedBy] != Mote:
		return nil, fmt.Errorf("keep %s: %w; delete it, or leave the work to it with --disable=%s", title(u), ErrForeign, o.addon)
	}
	return present, nil
}

// Apply writes objects as given, in order. An object that is already equal costs no write.
func (o *Objects) Apply(ctx context.Context, objects ...Object) error {
	for _, object := range objects {
		if err := o.apply(ctx, object); err != nil {
			return err
		}
	}
	return nil
}

func (o *Objects) apply(ctx context.Context, object Object) error {
	u, err := toUnstructured(object.Object)
	if err != nil {
		return err
	}
	present, err := o.present(ctx, object.Resource, u)
	if err != nil || present != nil && object.Once {
		return err
	}
	client := o.client.Resource(object.Resource).Namespace(u.GetNamespace())
	_, err = client.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: Mote, Force: true})
	if present != nil && immutable(err) && !contains(object.Resource) {
		// One case is a Service's address after a change of --cluster-dns.
		uid := present.GetUID()
		if err = client.Delete(ctx, u.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}); err == nil {
			_, err = client.Apply(ctx, u.GetName(), u, metav1.ApplyOptions{FieldManager: Mote, Force: true})
		}
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", title(u), err)
	}
	return nil
}

// immutable reports whether all causes of the apiserver's refusal are changes of immutable fields.
// A new object may have the new values. Any other cause would also apply to a new object.
func immutable(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return false
	}
	causes := status.Status().Details.Causes
	for _, cause := range causes {
		if !slices.ContainsFunc([]string{
			validation.FieldImmutableErrorMsg, "may not change once set", "cannot be modified once set", "cannot change roleRef", "updates to ",
		}, func(words string) bool { return strings.Contains(cause.Message, words) }) {
			return false
		}
	}
	return len(causes) > 0
}

// contains reports whether the deletion of an object also deletes other objects. That is too much
// for a replacement.
func contains(resource schema.GroupVersionResource) bool {
	return resource.Resource == "namespaces" || resource.Resource == "customresourcedefinitions"
}

// Remove deletes the objects that exist and are mote's, in reverse order.
func (o *Objects) Remove(ctx context.Context, objects ...Object) error {
	for i := len(objects) - 1; i >= 0; i-- {
		u, err := toUnstructured(objects[i].Object)
		if err != nil {
			return err
		}
		client := o.client.Resource(objects[i].Resource).Namespace(u.GetNamespace())
		present, err := client.Get(ctx, u.GetName(), metav1.GetOptions{})
		if err == nil && present.GetLabels()[ManagedBy] == Mote {
			uid := present.GetUID()
			err = client.Delete(ctx, u.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove %s: %w", title(u), err)
		}
	}
	return nil
}

// toUnstructured converts an object and adds the label. It drops the fields that every typed object
// contains: status and creationTimestamp.
func toUnstructured(object runtime.Object) (*unstructured.Unstructured, error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("convert %T: %w", object, err)
	}
	u := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(content, "status")
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	labels := u.GetLabels()
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[ManagedBy] = Mote
	u.SetLabels(labels)
	return u, nil
}

func title(u *unstructured.Unstructured) string {
	if u.GetNamespace() == "" {
		return u.GetKind() + " " + u.GetName()
	}
	return fmt.Sprintf("%s %s/%s", u.GetKind(), u.GetNamespace(), u.GetName())
}

// retryInterval is the wait between attempts after an error of the apiserver. It runs or will be
// back soon.
const retryInterval = time.Second

// Retry calls do until it succeeds, and logs the problem once. It returns the error when ctx ends,
// or at once when another attempt is useless because the object is foreign.
func Retry(ctx context.Context, addon string, do func(context.Context) error) error {
	for said := false; ; said = true {
		err := do(ctx)
		if err == nil || errors.Is(err, ErrForeign) || ctx.Err() != nil {
			return err
		}
		if !said {
			slog.Warn("will be tried again", "component", addon, "err", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(retryInterval):
		}
	}
}
