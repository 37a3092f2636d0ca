package api

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestToUnstructuredSaysOnlyWhatIsMeant(t *testing.T) {
	u, err := toUnstructured(&corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", Labels: map[string]string{"b": "c"}},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.43.0.10"},
	})
	require.NoError(t, err)
	require.Equal(t, map[string]any{
		"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"namespace": "ns", "name": "a", "labels": map[string]any{"b": "c", ManagedBy: Mote}},
		"spec":     map[string]any{"clusterIP": "10.43.0.10"},
	}, u.Object)
	require.Equal(t, "Service ns/a", title(u))
}

func TestOnlyWhatCannotBeChangedIsMadeAnew(t *testing.T) {
	kind, spec := schema.GroupKind{Kind: "Service"}, field.NewPath("spec")
	address := field.Invalid(spec.Child("clusterIPs").Index(0), []string{"10.43.0.10"}, "may not change once set")
	selector := field.Invalid(spec.Child("selector"), "x", validation.FieldImmutableErrorMsg)
	wrong := field.Invalid(spec.Child("ports"), "x", "must be a number")
	require.True(t, immutable(apierrors.NewInvalid(kind, "a", field.ErrorList{address, selector})))
	require.False(t, immutable(apierrors.NewInvalid(kind, "a", field.ErrorList{address, wrong})))
	require.False(t, immutable(apierrors.NewInvalid(kind, "a", nil)))
	require.False(t, immutable(errors.New("field is immutable")))
	require.False(t, immutable(nil))
}

func TestRetryGivesUpOnWhatIsNotOurs(t *testing.T) {
	calls := 0
	err := Retry(t.Context(), "a", func(context.Context) error { calls++; return ErrForeign })
	require.ErrorIs(t, err, ErrForeign)
	require.Equal(t, 1, calls)
}

func TestRetryEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	boom := errors.New("boom")
	err := Retry(ctx, "a", func(context.Context) error { cancel(); return boom })
	require.ErrorIs(t, err, boom)
}

func TestAccessImpersonates(t *testing.T) {
	a := Access{Server: "https://127.0.0.1:6443", CAFile: "/ca", CertFile: "/crt", KeyFile: "/key"}
	config := a.As(ServiceAccount("coredns"), "dns")
	require.Equal(t, "system:serviceaccount:kube-system:coredns", config.Impersonate.UserName)
	require.Equal(t, "/crt", config.TLSClientConfig.CertFile, "a file, which clients reread")
	require.Empty(t, a.Admin("dns").Impersonate.UserName)
}
