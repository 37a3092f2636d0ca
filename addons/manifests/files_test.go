package manifests

import (
	"archive/tar"
	"compress/gzip"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/regular"
)

// write makes files below a new directory and returns the directory.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		// Some file systems cannot report whether a file is open. There the file must have been
		// unchanged for a while.
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

// TestWhatIsNoFileIsRefusedAtOnce checks that a FIFO does not stop the addon for ever, as it once
// did. A file that names no object does not delay anything: objects of other files may be removed
// meanwhile.
func TestWhatIsNoFileIsRefusedAtOnce(t *testing.T) {
	dir := write(t, map[string]string{"good.yaml": configMap, "huge.yaml": "", "web.chart.yaml": "chart: web.tgz\n"})
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o600))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "web.tgz"), 0o600))
	require.NoError(t, os.Symlink("/dev/zero", filepath.Join(dir, "zero.json")))
	listener, err := net.Listen("unix", filepath.Join(dir, "socket.yml"))
	require.NoError(t, err)
	defer listener.Close()
	require.NoError(t, os.Truncate(filepath.Join(dir, "huge.yaml"), 1<<40))
	old := time.Now().Add(-time.Minute)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "huge.yaml"), old, old))
	got, err := readTree(dir)
	require.NoError(t, err)
	want := map[string]struct {
		err   error
		empty bool
	}{
		"fifo.yaml": {regular.ErrNotRegular, true}, "zero.json": {regular.ErrNotRegular, true}, "socket.yml": {regular.ErrNotRegular, true},
		"huge.yaml": {regular.ErrTooLarge, false}, "web.chart.yaml": {regular.ErrNotRegular, false}, "good.yaml": {nil, false},
	}
	require.Len(t, got.files, len(want))
	for _, f := range got.files {
		require.ErrorIs(t, f.err, want[f.name].err, f.name)
		require.Equal(t, want[f.name].empty, f.text != nil && len(f.text) == 0, f.name)
		require.False(t, f.again, f.name)
	}
	require.NoError(t, os.Remove(filepath.Join(dir, "fifo.yaml")))
	got, err = readTree(dir)
	require.NoError(t, err)
	require.Len(t, got.files, len(want)-1, "it is forgotten")
}

// TestReadThatFailsIsTriedAgain checks a read that fails for lack of descriptors. The shortage ends
// without an event of the directory.
func TestReadThatFailsIsTriedAgain(t *testing.T) {
	var f file
	f.unreadable(unix.EMFILE)
	require.True(t, f.again)
	require.Nil(t, f.text, "it may name anything")
	k := &Keeper{sets: map[string]*set{}, states: map[string]*state{}, trouble: map[string]string{}}
	k.states[""] = &state{failed: f.sum, failures: 1, retry: time.Now().Add(time.Minute)}
	due, next, _ := k.due([]file{f})
	require.Empty(t, due)
	require.NotZero(t, next)
	k.states[""].retry = time.Time{}
	due, _, _ = k.due([]file{f})
	require.Len(t, due, 1)
}

// TestBrokenFilesInUTF16NameObjects checks that an object that such a file may name is not removed
// because of another file.
func TestBrokenFilesInUTF16NameObjects(t *testing.T) {
	dir := write(t, map[string]string{"a.yaml": wide("kind: [\nname: moved\n", binary.LittleEndian)})
	got, err := readTree(dir)
	require.NoError(t, err)
	require.Error(t, got.files[0].err)
	require.Equal(t, "a.yaml", claimed(got.files, "b.yaml").doubt(key{name: "moved"}))
	require.Empty(t, claimed(got.files, "b.yaml").doubt(key{name: "other"}))
}

func TestChartFilesHaveOneDocument(t *testing.T) {
	for text, want := range map[string]string{
		"chart: a.tgz\n---\nchart: b.tgz\n":    "it has 2 documents",
		"chart: a.tgz\n...\nchart: b.tgz\n":    "it has 2 documents",
		`{"chart":"a.tgz"}{"chart":"b.tgz"}`:   "it has 2 documents",
		"chart: a.tgz\nchart: b.tgz\n":         `line 2: key "chart" already set`,
		"# nothing\n":                          "it has 0 documents",
		"chart: a.tgz\nvalue: {}\n":            `unknown field "value"`,
		"chart: a.tgz\nvalues: {a: 1, a: 2}\n": "",
	} {
		_, err := parseChart([]byte(text))
		if want == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, want, text)
		}
	}
}

// TestChartsThatHelmReadsInPart covers the output of templates. Helm reads it like kubectl, and an
// upgrade removes the objects that are not in the part it reads.
func TestChartsThatHelmReadsInPart(t *testing.T) {
	for text, taken := range map[string]int{
		"---\n# Source: a\n" + mapA + "---\n# Source: b\n" + mapB: 2, jsonA + jsonB: 2, "# nothing\n": 0,
		"apiVersion: v1\nkind: Pod\nmetadata: {generateName: a-}": 1, mapA + "data: {x: a, x: b}": 1,
	} {
		require.NoError(t, checkWhole([]byte(text), taken), text)
	}
	require.ErrorContains(t, checkWhole([]byte("---\n# Source: a\n"+mapA+"...\n"+mapB), 1), "has 2 objects of which Helm would take 1")
	require.ErrorContains(t, checkWhole([]byte("---\n# Source: a\n"+jsonA+"\n"+jsonB), 1), "separate objects by a line of ---")
	require.ErrorContains(t, checkWhole([]byte(mapA+mapB), 1), "already set in map")
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

// TestLinkedChart checks that a change of a chart behind a link counts as a change of the file that
// names it, because Helm follows links.
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
