package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/test/cluster"
)

//go:embed testdata/manifests-crd.yaml
var crdManifest string

const (
	manifestsDir = "/var/lib/mote/server/manifests"
	// keptTimeout is the time until a change of the directory is in the cluster: half a second on
	// an idle machine, some more if a kind or a namespace has to be created first.
	keptTimeout = time.Minute
)

// TestAddonManifests writes, edits, breaks and removes files in the manifests directory, with mote
// running and stopped.
func TestAddonManifests(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	drop(t, h, "before.yaml", configMap("before", "1")) // before the first start
	s := h.StartServer(t)
	s.WaitReady(t)
	waitData(t, h, "before", "1")

	t.Run("drop, edit, remove", func(t *testing.T) { testManifestLife(t, h) })
	t.Run("deleted by hand", func(t *testing.T) { testManifestDeleted(t, h) })
	t.Run("order", func(t *testing.T) { testManifestOrder(t, h) })
	t.Run("skip", func(t *testing.T) { testManifestSkip(t, h) })
	t.Run("broken", func(t *testing.T) { testManifestBroken(t, h) })
	t.Run("without separators", func(t *testing.T) { testManifestWhole(t, h) })
	t.Run("no files", func(t *testing.T) { testManifestNoFile(t, h) })
	t.Run("half written", func(t *testing.T) { testManifestHalfWritten(t, h) })
	t.Run("in two files", func(t *testing.T) { testManifestTwice(t, h) })
	t.Run("secrets", func(t *testing.T) { testManifestSecrets(t, h, s) })
	t.Run("chart", func(t *testing.T) { testManifestChart(t, h) })
	t.Run("stopped meanwhile", func(t *testing.T) { testManifestStopped(t, s) })
}

// drop puts a file into the directory in one step.
func drop(t *testing.T, h *cluster.Host, name, text string) {
	t.Helper()
	target := h.Path(path.Join(manifestsDir, name))
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, h *cluster.Host, name string) {
	t.Helper()
	if err := os.RemoveAll(h.Path(path.Join(manifestsDir, name))); err != nil {
		t.Fatal(err)
	}
}

func configMap(name, value string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {value: %q}\n", name, value)
}

// data returns a ConfigMap's value, "" if there is none.
func data(t *testing.T, h *cluster.Host, name string) string {
	t.Helper()
	return h.Kubectl(t, "get", "configmap", name, "--ignore-not-found", "-o", "jsonpath={.data.value}")
}

func waitData(t *testing.T, h *cluster.Host, name, want string) {
	t.Helper()
	h.WaitKubectl(t, keptTimeout, func(out string) bool { return out == want },
		"get", "configmap", name, "--ignore-not-found", "-o", "jsonpath={.data.value}")
}

// waitFile waits until the file's own ConfigMap has the parts.
func waitFile(t *testing.T, h *cluster.Host, file string, parts ...string) {
	t.Helper()
	h.WaitKubectl(t, keptTimeout, func(out string) bool {
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(line, file+" "); ok {
				for _, part := range parts {
					ok = ok && strings.Contains(rest, part)
				}
				return ok
			}
		}
		return len(parts) == 0
	}, "get", "configmap", "-n", "kube-system", "-l", "app.kubernetes.io/component=manifest",
		"-o", `jsonpath={range .items[*]}{.data.file} {.data.state} {.data.message}{"\n"}{end}`)
}

func testManifestLife(t *testing.T, h *cluster.Host) {
	drop(t, h, "a.yaml", configMap("one", "1")+configMap("two", "1"))
	drop(t, h, "sub/deep/b.yml", configMap("three", "1"))
	drop(t, h, "c.json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"four"},"data":{"value":"1"}}`)
	for _, name := range []string{"one", "two", "three", "four"} {
		waitData(t, h, name, "1")
	}
	drop(t, h, "a.yaml", configMap("one", "2")) // and "two" is gone from it
	waitData(t, h, "one", "2")
	waitData(t, h, "two", "")
	remove(t, h, "a.yaml")
	remove(t, h, "sub")
	remove(t, h, "c.json")
	for _, name := range []string{"one", "three", "four"} {
		waitData(t, h, name, "")
	}
	waitFile(t, h, "a.yaml")
	waitData(t, h, "before", "1")
}

func testManifestDeleted(t *testing.T, h *cluster.Host) {
	h.Kubectl(t, "delete", "configmap", "before")
	waitData(t, h, "before", "1")
	drop(t, h, "spaces.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: kept}\n---\n"+
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: inside, namespace: kept}\n")
	inside := func() {
		h.WaitKubectl(t, keptTimeout, func(out string) bool { return out != "" },
			"get", "configmap", "-n", "kept", "inside", "--ignore-not-found", "-o", "name")
	}
	inside()
	// Delete the whole namespace. That takes a while, during which nothing can be created there.
	h.Kubectl(t, "delete", "namespace", "kept", "--timeout=1m")
	inside()
	// An idle directory causes no writes.
	version := func() string {
		return h.Kubectl(t, "get", "configmap", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name}={.metadata.resourceVersion} {end}`)
	}
	waitFile(t, h, "spaces.yaml", "applied")
	before := version()
	drop(t, h, "unrelated.txt", "not a manifest")
	drop(t, h, "marker.yaml", configMap("marker", "1"))
	waitFile(t, h, "marker.yaml", "applied")
	for field := range strings.FieldsSeq(before) {
		if !strings.Contains(version(), field) {
			t.Errorf("%s was written without need", field)
		}
	}
	remove(t, h, "spaces.yaml")
	h.WaitKubectl(t, keptTimeout, func(out string) bool { return out == "" }, "get", "namespace", "kept", "--ignore-not-found", "-o", "name")
}

func testManifestOrder(t *testing.T, h *cluster.Host) {
	drop(t, h, "crons.yaml", crdManifest)
	waitFile(t, h, "crons.yaml", "applied")
	if at := h.Kubectl(t, "get", "crons", "-n", "late", "nightly", "-o", "jsonpath={.spec.at}"); at != "02:00" {
		t.Errorf("at %q", at)
	}
	h.Kubectl(t, "delete", "cron", "-n", "late", "nightly")
	h.WaitKubectl(t, keptTimeout, func(out string) bool { return out != "" }, "get", "crons", "-A", "-o", "name")
	remove(t, h, "crons.yaml")
	h.WaitKubectl(t, keptTimeout, func(out string) bool { return out == "" },
		"get", "crd,namespace", "crons.stable.example.test", "late", "--ignore-not-found", "-o", "name")
}

func testManifestSkip(t *testing.T, h *cluster.Host) {
	drop(t, h, "mine.yaml", configMap("mine", "1"))
	waitData(t, h, "mine", "1")
	drop(t, h, "mine.yaml.skip", "")
	drop(t, h, "mine.yaml", configMap("mine", "2"))
	drop(t, h, "after.yaml", configMap("after-skip", "1"))
	waitData(t, h, "after-skip", "1")
	if got := data(t, h, "mine"); got != "1" {
		t.Errorf("a skipped file was applied: %q", got)
	}
	remove(t, h, "mine.yaml.skip")
	waitData(t, h, "mine", "2")
	remove(t, h, "mine.yaml")
	remove(t, h, "after.yaml")
	waitData(t, h, "mine", "")
}

func testManifestBroken(t *testing.T, h *cluster.Host) {
	drop(t, h, "broken.yaml", configMap("fine", "1"))
	waitData(t, h, "fine", "1")
	events := func(part string) {
		h.WaitKubectl(t, keptTimeout, func(out string) bool { return strings.Contains(out, part) },
			"get", "events", "-n", "kube-system", "--field-selector", "reason=ManifestNotApplied", "-o", "jsonpath={.items[*].message}")
	}
	drop(t, h, "broken.yaml", configMap("fine", "2")+"---\nkind: [\n")
	waitFile(t, h, "broken.yaml", "failed", "document 2")
	events("broken.yaml: document 2")
	wantContains(t, "mote status", h.Run(t, "mote", "status"), manifestsDir+"/broken.yaml: document 2")
	if got := data(t, h, "fine"); got != "1" {
		t.Errorf("half of a broken file was applied: %q", got)
	}
	// One object has an unknown kind: the others are applied, and nothing else waits for it.
	drop(t, h, "broken.yaml", configMap("fine", "3")+"---\napiVersion: example.test/v1\nkind: Unknown\nmetadata: {name: x}\n")
	waitData(t, h, "fine", "3")
	events("the cluster knows no such kind")
	drop(t, h, "other.yaml", configMap("other", "1"))
	waitData(t, h, "other", "1")
	// The API refuses an object; the error names it.
	drop(t, h, "broken.yaml", configMap("fine", "3")+configMap("Not_a_name", "1"))
	waitFile(t, h, "broken.yaml", "failed", "Not_a_name")
	drop(t, h, "broken.yaml", configMap("fine", "4"))
	waitFile(t, h, "broken.yaml", "applied")
	waitData(t, h, "fine", "4")
	if out := h.Run(t, "mote", "status"); strings.Contains(out, "broken.yaml") {
		t.Errorf("a repaired file is still named:\n%s", out)
	}
	remove(t, h, "broken.yaml")
	remove(t, h, "other.yaml")
	waitData(t, h, "fine", "")
}

// testManifestWhole writes objects one after the other without "---". kubectl reads only the first
// one or two of them.
func testManifestWhole(t *testing.T, h *cluster.Host) {
	object := func(name string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"value":"2"}}`, name)
	}
	drop(t, h, "whole.yaml", configMap("whole-a", "1")+configMap("whole-b", "1"))
	waitData(t, h, "whole-b", "1")
	drop(t, h, "whole.yaml", object("whole-a")+"\n"+object("whole-b")+"\n")
	waitData(t, h, "whole-b", "2")
	waitData(t, h, "whole-a", "2")
	drop(t, h, "whole.yaml", strings.ReplaceAll(configMap("whole-a", "3")+configMap("whole-b", "3"), "---", "..."))
	waitData(t, h, "whole-b", "3")
	drop(t, h, "whole.yaml", strings.ReplaceAll(configMap("whole-a", "4")+configMap("whole-b", "4"), "---\n", ""))
	waitFile(t, h, "whole.yaml", "failed", `line 5: key "apiVersion" already set in map; separate objects by a line of ---`)
	for _, name := range []string{"whole-a", "whole-b"} {
		if got := data(t, h, name); got != "3" {
			t.Errorf("%s is %q after a file that is refused, want 3", name, got)
		}
	}
	remove(t, h, "whole.yaml")
	waitData(t, h, "whole-b", "")
}

// testManifestNoFile makes a FIFO, on which the addon once blocked for ever, and a file without an
// end.
func testManifestNoFile(t *testing.T, h *cluster.Host) {
	drop(t, h, "gone.yaml", configMap("gone", "1"))
	waitData(t, h, "gone", "1")
	if err := unix.Mkfifo(h.Path(manifestsDir+"/fifo.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", h.Path(manifestsDir+"/zero.yaml")); err != nil {
		t.Fatal(err)
	}
	waitFile(t, h, "fifo.yaml", "failed", "not a regular file but a named pipe")
	waitFile(t, h, "zero.yaml", "failed", "not a regular file but a device")
	wantContains(t, "mote status", h.Run(t, "mote", "status"), manifestsDir+"/fifo.yaml: open")
	remove(t, h, "gone.yaml") // the files do not name it
	waitData(t, h, "gone", "")
	remove(t, h, "fifo.yaml")
	remove(t, h, "zero.yaml")
	waitFile(t, h, "fifo.yaml")
	waitFile(t, h, "zero.yaml")
	if out := h.Run(t, "mote", "status"); strings.Contains(out, "fifo.yaml") || strings.Contains(out, "zero.yaml") {
		t.Errorf("what was removed is still named:\n%s", out)
	}
}

// testManifestHalfWritten keeps a file open that is half written.
func testManifestHalfWritten(t *testing.T, h *cluster.Host) {
	drop(t, h, "slow.yaml", configMap("slow-a", "1")+configMap("slow-b", "1"))
	waitData(t, h, "slow-b", "1")
	out, err := os.Create(h.Path(manifestsDir + "/slow.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.WriteString(configMap("slow-a", "2")); err != nil {
		t.Fatal(err)
	}
	drop(t, h, "quick.yaml", configMap("quick", "1"))
	waitData(t, h, "quick", "1")
	if a, b := data(t, h, "slow-a"), data(t, h, "slow-b"); a != "1" || b != "1" {
		t.Errorf("half a file was applied: %q, %q", a, b)
	}
	if _, err := out.WriteString(configMap("slow-b", "2")); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	waitData(t, h, "slow-a", "2")
	waitData(t, h, "slow-b", "2")
	remove(t, h, "slow.yaml")
	remove(t, h, "quick.yaml")
	waitData(t, h, "slow-b", "")
}

func testManifestTwice(t *testing.T, h *cluster.Host) {
	drop(t, h, "first.yaml", configMap("shared", "first"))
	waitData(t, h, "shared", "first")
	drop(t, h, "second.yaml", configMap("shared", "second"))
	waitFile(t, h, "second.yaml", "failed", "shared: it is in first.yaml too")
	if got := data(t, h, "shared"); got != "first" {
		t.Errorf("the second file won: %q", got)
	}
	// The object moves to the other file without being deleted.
	uid := h.Kubectl(t, "get", "configmap", "shared", "-o", "jsonpath={.metadata.uid}")
	remove(t, h, "first.yaml")
	waitData(t, h, "shared", "second")
	if now := h.Kubectl(t, "get", "configmap", "shared", "-o", "jsonpath={.metadata.uid}"); now != uid {
		t.Error("it was removed and made again")
	}
	remove(t, h, "second.yaml")
	waitData(t, h, "shared", "")
}

// testManifestSecrets searches for values that must not be anywhere except in the Secret.
func testManifestSecrets(t *testing.T, h *cluster.Host, s *cluster.Server) {
	secret := func(fields string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: pass}\n" + fields
	}
	drop(t, h, "secret.yaml", secret("data: {a: hunter2-not-base64}\n"))
	waitFile(t, h, "secret.yaml", "failed", "Secret default/pass")
	drop(t, h, "secret.yaml", secret("stringData: hunter2\nhunter2\n"))
	waitFile(t, h, "secret.yaml", "failed", "document 1")
	drop(t, h, "secret.yaml", secret("stringData: {a: hunter2}\n"))
	waitFile(t, h, "secret.yaml", "applied")
	told := h.Kubectl(t, "get", "events,configmap", "-A", "-o", "yaml") + h.Run(t, "mote", "status")
	if strings.Contains(told, "hunter2") || strings.Contains(s.Log(t), "hunter2") {
		t.Error("a secret is told")
	}
	remove(t, h, "secret.yaml")
	h.WaitKubectl(t, keptTimeout, func(out string) bool { return out == "" }, "get", "secret", "pass", "--ignore-not-found", "-o", "name")
}

// testManifestChart installs a chart from a directory and from an archive, upgrades and removes it.
func testManifestChart(t *testing.T, h *cluster.Host) {
	drop(t, h, "shop/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\n")
	drop(t, h, "shop/values.yaml", "colour: red\nsize: small\n")
	drop(t, h, "shop/templates/config.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}-config}\n"+
		"data: {value: {{ .Values.colour }}-{{ .Values.size }}-{{ .Chart.Version }}}\n")
	spec := "chart: shop\nnamespace: mall\nvalues: {colour: %s}\n"
	value := func(want string) {
		h.WaitKubectl(t, keptTimeout, func(out string) bool { return out == want },
			"get", "configmap", "-n", "mall", "store-config", "--ignore-not-found", "-o", "jsonpath={.data.value}")
	}
	drop(t, h, "store.chart.yaml", fmt.Sprintf(spec, "blue"))
	value("blue-small-1.0.0")
	// Helm records that a release is deployed, or gone, after its objects are.
	h.WaitKubectl(t, keptTimeout, func(out string) bool { return strings.Contains(out, "sh.helm.release.v1.store.v1") },
		"get", "secret", "-n", "mall", "-l", "owner=helm,name=store,status=deployed", "-o", "name")
	drop(t, h, "store.chart.yaml", fmt.Sprintf(spec, "green"))
	value("green-small-1.0.0")
	drop(t, h, "shop/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.1.0\n")
	value("green-small-1.1.0")
	// The same from an archive.
	dir := h.Path(manifestsDir)
	if out, err := exec.Command("tar", "-C", dir, "-czf", dir+"/shop.tgz", "shop").CombinedOutput(); err != nil {
		t.Fatalf("pack: %v: %s", err, out)
	}
	remove(t, h, "shop")
	drop(t, h, "store.chart.yaml", fmt.Sprintf(strings.Replace(spec, "shop", "shop.tgz", 1), "grey"))
	value("grey-small-1.1.0")
	drop(t, h, "store.chart.yaml", "chart: nowhere.tgz\nnamespace: mall\n")
	waitFile(t, h, "store.chart.yaml", "failed", "nowhere.tgz")
	value("grey-small-1.1.0")
	remove(t, h, "store.chart.yaml")
	value("")
	h.WaitKubectl(t, keptTimeout, func(left string) bool { return left == "" }, "get", "secret", "-n", "mall", "-l", "owner=helm", "-o", "name")
	remove(t, h, "shop.tgz")
}

// testManifestStopped changes the directory while mote is stopped, killed, or running with the
// addon disabled.
func testManifestStopped(t *testing.T, s *cluster.Server) {
	h := s.Host
	restart := func(args ...string) {
		s = h.StartServer(t, args...)
		s.WaitReady(t)
	}
	drop(t, h, "gone.yaml", configMap("gone", "1")+configMap("edited", "1"))
	waitFile(t, h, "gone.yaml", "applied")
	s.Kill()
	remove(t, h, "gone.yaml")
	drop(t, h, "edited.yaml", configMap("edited", "2"))
	restart()
	waitData(t, h, "gone", "")
	waitData(t, h, "edited", "2")
	waitData(t, h, "before", "1")

	h.Run(t, "mote", "stop")
	s.WaitEnd(t, cluster.StopTimeout)
	restart("--disable=manifests")
	parents := []string{"get", "configmap", "-n", "kube-system", "-l", "app.kubernetes.io/component=manifest", "-o", "name"}
	h.WaitKubectl(t, keptTimeout, func(out string) bool { return out == "" }, parents...)
	if got := data(t, h, "edited"); got != "2" {
		t.Errorf("users' objects went with the addon: %q", got)
	}
	drop(t, h, "edited.yaml", configMap("edited", "3"))
	h.Run(t, "mote", "stop")
	s.WaitEnd(t, cluster.StopTimeout)
	restart()
	waitData(t, h, "edited", "3")
}
