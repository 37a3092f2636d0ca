package manifests

import (
	"archive/tar"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// write makes files below a new directory and returns it.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		// Not every file system can tell whether a file is open: then it must have been quiet.
		old := time.Now().Add(-time.Minute)
		require.NoError(t, os.Chtimes(path, old, old))
	}
	return dir
}

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"

func TestTree(t *testing.T) {
	dir := write(t, map[string]string{
		"b.yaml": configMap, "a.yml": configMap, "sub/deep/c.json": `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}`,
		"skipped.yaml": "not even YAML: {", "skipped.yaml.skip": "",
		".hidden.yaml": configMap, ".git/x.yaml": configMap, "notes.txt": "", "b.yaml~": "", "b.yaml.swp": "",
		"web/Chart.yaml": "name: web\nversion: 1.0.0\napiVersion: v2\n", "web/templates/x.yaml": "{{ this is no YAML }}",
	})
	got, err := readTree(dir)
	require.NoError(t, err)
	var names []string
	for _, f := range got.files {
		require.NoError(t, f.err, f.name)
		names = append(names, f.name)
		require.Equal(t, f.name == "skipped.yaml", f.skipped, f.name)
	}
	require.Equal(t, []string{"a.yml", "b.yaml", "skipped.yaml", "sub/deep/c.json"}, names)
	require.ElementsMatch(t, []string{
		dir, filepath.Join(dir, "sub"), filepath.Join(dir, "sub/deep"), filepath.Join(dir, "web"), filepath.Join(dir, "web/templates"),
	}, got.dirs, "a chart's folders are watched, but hold no manifests")
}

func TestTreeThatIsNotThereIsNoEmptyTree(t *testing.T) {
	_, err := readTree(filepath.Join(t.TempDir(), "gone"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLinksAreFollowed(t *testing.T) {
	real := write(t, map[string]string{"a.yaml": configMap})
	other := write(t, map[string]string{"b.yaml": configMap, "deep/c.yaml": configMap})
	require.NoError(t, os.Symlink(other, filepath.Join(real, "sub")))
	dir := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(real, dir))
	got, err := readTree(dir)
	require.NoError(t, err)
	require.NoError(t, got.hidden)
	var names []string
	for _, f := range got.files {
		names = append(names, f.name)
	}
	require.Equal(t, []string{"a.yaml", "sub/b.yaml", "sub/deep/c.yaml"}, names)
	require.ElementsMatch(t, []string{real, other, filepath.Join(other, "deep"), filepath.Dir(dir)}, got.dirs)

	require.NoError(t, os.Symlink(real, filepath.Join(other, "loop")))
	got, err = readTree(dir)
	require.NoError(t, err)
	require.Len(t, got.files, 3)
	require.ErrorContains(t, got.hidden, "sub/loop")

	require.NoError(t, os.RemoveAll(other))
	got, err = readTree(dir)
	require.NoError(t, err)
	require.ErrorContains(t, got.hidden, "link sub", "what was in it may be there still")

	require.NoError(t, os.RemoveAll(real))
	_, err = readTree(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestDanglingLinkIsNoMissingFile(t *testing.T) {
	dir := write(t, nil)
	require.NoError(t, os.Symlink("gone", filepath.Join(dir, "a.yaml")))
	got, err := readTree(dir)
	require.NoError(t, err)
	require.Len(t, got.files, 1)
	require.ErrorIs(t, got.files[0].err, os.ErrNotExist)
}

func TestFileThatIsWrittenIsNotRead(t *testing.T) {
	dir := write(t, map[string]string{"a.yaml": configMap})
	out, err := os.OpenFile(filepath.Join(dir, "a.yaml"), os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = out.WriteString("---\n")
	require.NoError(t, err)
	got, err := readTree(dir)
	require.NoError(t, err)
	require.ErrorIs(t, got.files[0].err, errBusy)
	require.NoError(t, out.Close())
	old := time.Now().Add(-time.Minute)
	require.NoError(t, os.Chtimes(out.Name(), old, old))
	got, err = readTree(dir)
	require.NoError(t, err)
	require.NoError(t, got.files[0].err)
}

func TestParse(t *testing.T) {
	objects, err := parse([]byte("# a comment\n---\n" + configMap + "---\n\n---\napiVersion: v1\nkind: List\nitems:\n- " +
		"{apiVersion: v1, kind: Secret, metadata: {name: b}}\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: c}}\n"))
	require.NoError(t, err)
	var names []string
	for _, u := range objects {
		names = append(names, identity(u).String())
	}
	require.Equal(t, []string{"ConfigMap a", "Secret b", "Deployment c"}, names)
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		configMap + "---\nkind: [":                                    "document 2",
		"just words":                                                  "document 1",
		"kind: ConfigMap\nmetadata: {name: a}":                        "no apiVersion",
		"apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}":     "generateName",
		"apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]":  "item",
		"apiVersion: v1\nkind: List\nitems: [words]":                  "document 1",
		"- apiVersion: v1\n  kind: ConfigMap\n  metadata: {name: a}":  "document 1",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n\tx: ": "document 1",
	} {
		objects, err := parse([]byte(text))
		require.ErrorContains(t, err, want, text)
		require.Empty(t, objects, "all or nothing")
	}
}

func TestErrorsQuoteNothing(t *testing.T) {
	_, err := parse([]byte("apiVersion: v1\nkind: Secret\nstringData: hunter2\nhunter2\n"))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
	_, err = parse([]byte("hunter2"))
	require.Error(t, err)
	require.NotContains(t, err.Error(), "hunter2")
	var f file
	f.readChart("/a.chart.yaml", []byte("chart: a.tgz\nvalues: hunter2\n"))
	require.Error(t, f.err)
	require.NotContains(t, f.err.Error(), "hunter2")
}

// packed writes a chart's archive.
func packed(t *testing.T, path, text string) {
	t.Helper()
	out, err := os.Create(path)
	require.NoError(t, err)
	zip := gzip.NewWriter(out)
	archive := tar.NewWriter(zip)
	require.NoError(t, archive.WriteHeader(&tar.Header{Name: "web/Chart.yaml", Mode: 0o600, Size: int64(len(text))}))
	_, err = archive.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, archive.Close())
	require.NoError(t, zip.Close())
	require.NoError(t, out.Close())
}

func TestChart(t *testing.T) {
	dir := write(t, map[string]string{"web.chart.yaml": "chart: web.tgz\nnamespace: shop\nvalues: {replicas: 2}\n"})
	packed(t, filepath.Join(dir, "web.tgz"), "name: web\nversion: 1.0.0\n")
	got, err := readTree(dir)
	require.NoError(t, err)
	require.Len(t, got.files, 1)
	f := got.files[0]
	require.NoError(t, f.err)
	require.Equal(t, "shop/web", f.chart.release())
	require.Equal(t, filepath.Join(dir, "web.tgz"), f.chart.Chart)
	require.Equal(t, map[string]any{"replicas": float64(2)}, f.chart.Values)

	packed(t, filepath.Join(dir, "web.tgz"), "name: web\nversion: 1.0.1\n")
	again, err := readTree(dir)
	require.NoError(t, err)
	require.NotEqual(t, f.sum, again.files[0].sum, "another chart is a change")

	require.NoError(t, os.Remove(filepath.Join(dir, "web.tgz")))
	gone, err := readTree(dir)
	require.NoError(t, err)
	require.ErrorContains(t, gone.files[0].err, "read the chart")
}

// TestLinkedChart: a change of a chart behind a link is a change of the file that names it, as Helm follows links.
func TestLinkedChart(t *testing.T) {
	dir := write(t, map[string]string{"web.chart.yaml": "chart: linked\n"})
	real := write(t, map[string]string{"Chart.yaml": "name: web\n", "templates/a.yaml": "a"})
	shared := write(t, map[string]string{"values.yaml": "b"})
	require.NoError(t, os.Symlink(real, filepath.Join(dir, "linked")))
	require.NoError(t, os.Symlink(filepath.Join(shared, "values.yaml"), filepath.Join(real, "values.yaml")))
	sum := func() string {
		f, ok := readFile("web.chart.yaml", filepath.Join(dir, "web.chart.yaml"))
		require.True(t, ok)
		require.NoError(t, f.err)
		return f.sum
	}
	before := sum()
	require.Equal(t, before, sum())
	for _, changed := range []string{filepath.Join(real, "templates/a.yaml"), filepath.Join(shared, "values.yaml")} {
		require.NoError(t, os.WriteFile(changed, []byte("changed"), 0o600))
		require.NotEqual(t, before, sum(), changed)
		before = sum()
	}
	require.NoError(t, os.Symlink(real, filepath.Join(real, "templates", "circle")))
	f, _ := readFile("web.chart.yaml", filepath.Join(dir, "web.chart.yaml"))
	require.ErrorContains(t, f.err, "again and again")
}
