package manifests

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata/fake"
)

func object(name string, labels, annotations map[string]string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels, Annotations: annotations},
	}
}

func TestAdopted(t *testing.T) {
	ours := func(id string) bool { return id == "a" || id == "b" }
	before, err := adopted(object("x", nil, nil), ours)
	require.NoError(t, err)
	require.True(t, before)
	before, err = adopted(object("x", map[string]string{labelPartOf: "b"}, nil), ours)
	require.NoError(t, err)
	require.False(t, before, "a file has made it")
	before, err = adopted(object("x", map[string]string{labelPartOf: "b"}, map[string]string{annotationAdopted: "true"}), ours)
	require.NoError(t, err)
	require.True(t, before, "that is not forgotten")
	_, err = adopted(object("x", map[string]string{labelPartOf: "c"}, nil), ours)
	require.ErrorContains(t, err, "another apply set, c")
}

// TestDropLeavesWhatWasThereBefore checks that such an object only loses mote's label.
func TestDropLeavesWhatWasThereBefore(t *testing.T) {
	scheme := fake.NewTestScheme()
	require.NoError(t, metav1.AddMetaToScheme(scheme))
	old := object("old", map[string]string{labelPartOf: "a", "app": "x"}, map[string]string{annotationAdopted: "true"})
	made := object("made", map[string]string{labelPartOf: "a"}, nil)
	c := &cluster{meta: fake.NewSimpleMetadataClient(scheme, old, made)}
	resource, kind := corev1.SchemeGroupVersion.WithResource("namespaces"), schema.GroupKind{Kind: "Namespace"}
	for _, o := range []*metav1.PartialObjectMetadata{old, made} {
		_, err := c.drop(t.Context(), resource, key{kind, "", o.Name}, o)
		require.NoError(t, err)
	}
	left, err := c.meta.Resource(resource).List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
	require.Len(t, left.Items, 1)
	require.Equal(t, "old", left.Items[0].Name)
	require.Equal(t, map[string]string{"app": "x"}, left.Items[0].Labels)
	require.Empty(t, left.Items[0].Annotations)
}

// TestPruneLeavesWhatMayHaveMoved checks that an object that was moved into a file with a typo is
// not deleted.
func TestPruneLeavesWhatMayHaveMoved(t *testing.T) {
	s := newSet("node", "a.yaml")
	kind := schema.GroupKind{Kind: "Namespace"}
	s.kinds[kind] = true
	scheme := fake.NewTestScheme()
	require.NoError(t, metav1.AddMetaToScheme(scheme))
	mapper := meta.NewDefaultRESTMapper([]schema.GroupVersion{corev1.SchemeGroupVersion})
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Namespace"), meta.RESTScopeRoot)
	var there []runtime.Object
	for _, name := range []string{"moved", "dropped", "kept"} {
		there = append(there, object(name, map[string]string{labelPartOf: s.id}, nil))
	}
	c := &cluster{meta: fake.NewSimpleMetadataClient(scheme, there...), mapper: fixedMapper{mapper}}
	broken, ok := readFile("b.yaml", filepath.Join(write(t, map[string]string{
		"b.yaml": "apiVersion: v1\nkind: Namespace\nmetadata: {name: moved\n",
	}), "b.yaml"))
	require.True(t, ok)
	require.Error(t, broken.err)
	named := claimed([]file{broken, {name: "a.yaml"}}, "a.yaml")
	named.keys[key{kind, "", "kept"}] = true
	p, err := c.prune(t.Context(), s, named)
	require.NoError(t, err)
	require.Equal(t, []string{"Namespace dropped"}, p.removed)
	require.Equal(t, []string{"Namespace moved, which b.yaml may name"}, p.left)

	// The content of a file that cannot be read is unknown. When it can be read or is gone, the
	// rest is removed.
	p, err = c.prune(t.Context(), s, claims{keys: named.keys, doubtful: []file{{name: "c.yaml", err: os.ErrPermission}}})
	require.NoError(t, err)
	require.Equal(t, []string{"Namespace moved, which c.yaml may name"}, p.left)
	p, err = c.prune(t.Context(), s, claims{keys: named.keys})
	require.NoError(t, err)
	require.Equal(t, pruned{removed: []string{"Namespace moved"}}, p)
}

// fixedMapper knows its kinds from the start.
type fixedMapper struct{ *meta.DefaultRESTMapper }

func (fixedMapper) Reset() {}
