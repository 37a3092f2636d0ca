package manifests

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/mote-k8s/mote/addons/api"
)

func TestSetsHaveNamesOfTheirOwn(t *testing.T) {
	names := make(map[string]bool)
	for _, s := range []*set{
		newSet("a", "web.yaml"), newSet("b", "web.yaml"), newSet("a", "web.yml"), newSet("a", "sub/web.yaml"), newSet("a", "Web.yaml"),
		newSet("a", "..yaml"), newSet("a", "ÄÖÜ.yaml"), newSet("a", string(make([]byte, 250))+".yaml"),
	} {
		require.Empty(t, validation.IsDNS1123Subdomain(s.name), s.name)
		require.Empty(t, validation.IsValidLabelValue(s.id), s.id)
		require.False(t, names[s.name], s.name)
		names[s.name] = true
	}
	require.Equal(t, newSet("a", "web.yaml"), newSet("a", "web.yaml"))
}

func TestSetSurvivesARestart(t *testing.T) {
	s := newSet("a", "web.yaml")
	s.kinds[schema.GroupKind{Group: "apps", Kind: "Deployment"}], s.kinds[schema.GroupKind{Kind: "Secret"}] = true, true
	s.namespaces["shop"], s.sum, s.release, s.state, s.message = true, "1234", "shop/web", stateFailed, "why"
	config := s.parent("a").Object.(*corev1.ConfigMap)
	config.Labels[api.ManagedBy] = api.Mote
	other := newSet("b", "web.yaml").parent("b").Object.(*corev1.ConfigMap)
	other.Labels[api.ManagedBy] = api.Mote
	got, err := loadSets(t.Context(), fake.NewClientset(config, other), "a")
	require.NoError(t, err)
	require.Equal(t, map[string]*set{"web.yaml": s}, got)
}

func TestExplainKeepsSecrets(t *testing.T) {
	k := key{schema.GroupKind{Kind: "Secret"}, "default", "a"}
	err := apierrors.NewInvalid(k.GroupKind, "a", field.ErrorList{field.Invalid(field.NewPath("data", "x"), "hunter2", "no good")})
	require.Contains(t, err.Error(), "hunter2")
	require.Equal(t, "Secret default/a: the API does not take it (422 Invalid), data.x; its values are not told", explain(k, err).Error())
	k.Kind = "ConfigMap"
	require.ErrorContains(t, explain(k, errors.New("boom")), "ConfigMap default/a: boom")
}

func TestRanks(t *testing.T) {
	last := -1
	for _, kind := range []schema.GroupKind{
		{Kind: "Namespace"}, {Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"},
		{Group: "rbac.authorization.k8s.io", Kind: "ClusterRole"}, {Group: "apps", Kind: "Deployment"},
		{Group: "apiregistration.k8s.io", Kind: "APIService"},
	} {
		require.Greater(t, rank(kind), last, kind.String())
		last = rank(kind)
	}
	require.Equal(t, rank(schema.GroupKind{Kind: "Secret"}), rank(schema.GroupKind{Group: "storage.k8s.io", Kind: "StorageClass"}))
}
