package api

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
