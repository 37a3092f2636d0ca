package manifests

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestDue(t *testing.T) {
	broken := errors.New("broken")
	soon := time.Now().Add(time.Minute)
	for what, c := range map[string]struct {
		file  file
		state *state
		due   bool
	}{
		"new":                        {file{sum: "1"}, nil, true},
		"applied":                    {file{sum: "1"}, &state{applied: "1"}, false},
		"edited":                     {file{sum: "2"}, &state{applied: "1"}, true},
		"deleted from the cluster":   {file{sum: "1"}, &state{applied: "1", again: true}, true},
		"failed a moment ago":        {file{sum: "1"}, &state{failed: "1", failures: 1, retry: soon}, false},
		"failed a while ago":         {file{sum: "1"}, &state{failed: "1", failures: 1}, true},
		"failed and edited":          {file{sum: "2"}, &state{failed: "1", failures: 1, retry: soon}, true},
		"failed, edited, and undone": {file{sum: "1"}, &state{applied: "1", again: true, failed: "2", failures: 1, retry: soon}, true},
		"not understood":             {file{sum: "1", err: broken}, nil, true},
		"not understood, known":      {file{sum: "1", err: broken}, &state{failed: "1", failures: 1}, false},
		"not understood anew":        {file{sum: "2", err: broken}, &state{failed: "1", failures: 1}, true},
		"skipped":                    {file{skipped: true}, &state{applied: "1"}, false},
		"being written":              {file{err: errBusy}, &state{applied: "1"}, false},
	} {
		k := &Keeper{sets: map[string]*set{}, states: map[string]*state{}, trouble: map[string]string{}}
		if c.state != nil {
			k.states[""] = c.state
		}
		due, _, busy := k.due([]file{c.file})
		require.Equal(t, c.due, len(due) == 1, what)
		require.Equal(t, errors.Is(c.file.err, errBusy), busy, what)
	}
}

func TestSkippedFileIsAppliedWhenItIsNotSkippedAnyMore(t *testing.T) {
	k := &Keeper{sets: map[string]*set{}, states: map[string]*state{"": {applied: "1"}}, trouble: map[string]string{}}
	due, _, _ := k.due([]file{{skipped: true}})
	require.Empty(t, due)
	due, _, _ = k.due([]file{{sum: "1"}})
	require.Len(t, due, 1)
}

func TestEmptyDirectoryIsDoubtedUntilItHasHadAFile(t *testing.T) {
	k := &Keeper{sets: map[string]*set{}}
	empty, one := tree{}, tree{files: []file{{name: "b.yaml"}}}
	k.doubt(&empty)
	require.NoError(t, empty.hidden, "nothing is lost")
	k.sets["a.yaml"] = newSet("", "a.yaml")
	k.doubt(&empty)
	require.ErrorContains(t, empty.hidden, "it is empty")
	k.doubt(&one)
	require.NoError(t, one.hidden)
	empty.hidden = nil
	k.doubt(&empty)
	require.NoError(t, empty.hidden, "somebody emptied it")
}

func TestReleaseHasOneOwner(t *testing.T) {
	had, broken := newSet("", "b.chart.yaml"), errors.New("broken")
	had.release = "shop/web"
	k := &Keeper{sets: map[string]*set{"b.chart.yaml": had}}
	web := func(name string) file { return file{name: name, chart: &chart{Namespace: "shop", Name: "web"}} }
	a, b, other := web("a.chart.yaml"), web("b.chart.yaml"), file{name: "b.chart.yaml", chart: &chart{Namespace: "shop", Name: "x"}}
	for what, c := range map[string]struct {
		files []file
		but   string
		want  string
	}{
		"it has it":             {[]file{a, b}, "", "b.chart.yaml"},
		"moved":                 {[]file{a}, "b.chart.yaml", "a.chart.yaml"},
		"renamed in its file":   {[]file{a, other}, "", "a.chart.yaml"},
		"nobody else":           {[]file{b}, "b.chart.yaml", ""},
		"cannot be read":        {[]file{a, {name: "b.chart.yaml", err: broken}}, "", "b.chart.yaml"},
		"skipped":               {[]file{a, {name: "b.chart.yaml", skipped: true}}, "", "b.chart.yaml"},
		"two that are both new": {[]file{a, web("c.chart.yaml")}, "", "a.chart.yaml"},
	} {
		require.Equal(t, c.want, k.owner(c.files, "shop/web", c.but), what)
	}
	require.NoError(t, k.uninstall(t.Context(), []file{a}, "shop/web", "b.chart.yaml"), "it is not even tried")
	unclear := []file{{name: "d.chart.yaml", err: broken}}
	require.ErrorContains(t, k.uninstall(t.Context(), unclear, "shop/web", "b.chart.yaml"), "d.chart.yaml may be")
	refused := &work{file: a, set: newSet("", "a.chart.yaml")}
	require.ErrorContains(t, k.begin(t.Context(), refused, []file{a, b}), "it is in b.chart.yaml too")
	require.Empty(t, refused.set.release)
}

func TestSooner(t *testing.T) {
	require.Equal(t, time.Duration(0), sooner(0, 0))
	require.Equal(t, time.Second, sooner(0, time.Second))
	require.Equal(t, time.Second, sooner(time.Minute, time.Second))
}

// TestClaims checks that an object that another file names is not removed, whether that file states
// the default namespace or not.
func TestClaims(t *testing.T) {
	objects, err := parse([]byte(configMap + "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: b, namespace: shop}}\n"))
	require.NoError(t, err)
	kind := schema.GroupKind{Kind: "ConfigMap"}
	files := []file{{name: "one", objects: objects}, {name: "two", objects: []*unstructured.Unstructured{}}}
	require.Empty(t, claimed(files, "one").keys)
	require.Equal(t, map[key]bool{{kind, "", "a"}: true, {kind, "default", "a"}: true, {kind, "shop", "b"}: true}, claimed(files, "two").keys)
}

func TestJobsThatGoAreDoneOnce(t *testing.T) {
	job := func(spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{"kind": "Job", "spec": spec}}
	}
	require.True(t, fleeting(job(map[string]any{"ttlSecondsAfterFinished": int64(10)})))
	require.False(t, fleeting(job(map[string]any{})))
	require.False(t, fleeting(&unstructured.Unstructured{Object: map[string]any{"kind": "Job"}}))
}
