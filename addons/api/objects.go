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

// The label that says whose an object is, and its value for ours.
const (
	ManagedBy = "app.kubernetes.io/managed-by"
	Mote      = "mote"
)

// ErrForeign is wrapped by Apply's errors for objects that are somebody else's.
var ErrForeign = errors.New("it is not mote's")

// Object is one object that an addon owns.
type Object struct {
	Resource schema.GroupVersionResource
	// Object is a typed object with kind, name and, if it has one, namespace. Apply adds the label.
	Object runtime.Object
	// Once leaves the object alone when it is there: it is the users' to edit.
	Once bool
}

// Objects is an addon's own objects in the cluster.
type Objects struct {
	addon  string
	client dynamic.Interface
}

// NewObjects makes the keeper of an addon's objects.
func NewObjects(config *rest.Config, addon string) (*Objects, error) {
	config = rest.CopyConfig(config)
	config.ContentType, config.AcceptContentTypes = "", "" // unstructured objects are JSON
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make %s's client: %w", addon, err)
	}
	return &Objects{addon, client}, nil
}

// Check looks for an object that is somebody else's, so that Apply need not stop half way.
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

// present is the object of u's name if it is there and ours, nil if there is none.
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

// Apply writes objects as they are given, in order. An object that is so already costs no write.
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
		// Such as a Service's address after --cluster-dns was changed.
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

// immutable says that all that the apiserver does not take is changes of fields that cannot be changed: a new object may
// have them. Anything else wrong would be wrong with a new object too.
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

// contains says that other objects go with one: too many for a new one.
func contains(resource schema.GroupVersionResource) bool {
	return resource.Resource == "namespaces" || resource.Resource == "customresourcedefinitions"
}

// Remove deletes those of the objects that are there and are ours, last first.
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

// toUnstructured drops what a typed object says without meaning it.
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

// retryInterval is between attempts to do what the apiserver did not do: it is up, or will be back soon.
const retryInterval = time.Second

// Retry calls do until it succeeds, and says once what is wrong. It gives up with the error when ctx ends, or
// at once when trying again is of no use: the object is somebody else's.
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
