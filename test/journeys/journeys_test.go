// Package journeys replays the tasks that the Kubernetes documentation has for new users, on a real
// mote. Each script below testdata reads like its document: kubectl commands and manifests, and
// their output.
//
// The scripts of testdata/shared run in parallel on one cluster, each in a namespace of its own, as
// do the parts of a class. Those of testdata/alone stop servers or drain nodes and have a host
// each.
//
// The commands of a script are those of testscript
// (https://pkg.go.dev/github.com/rogpeppe/go-internal/testscript) and those of commands_test.go.
package journeys

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/images"
)

// accountTimeout is the time in which a new namespace gets its service account: milliseconds on an
// idle machine.
const accountTimeout = 30 * time.Second

func TestMain(m *testing.M) { cluster.Main(m, "journeys") }

// TestShared replays the scripts that can share a cluster.
func TestShared(t *testing.T) {
	h := newHost(t)
	addClients(t, h)
	s := h.StartServer(t)
	s.WaitReady(t)
	addons := addonsOf(t, h)
	t.Run("scripts", func(t *testing.T) {
		runScripts(t, "testdata/shared/*.txtar", func(t *testing.T) *session {
			return &session{t: t, host: h, server: s, addons: addons}
		})
	})
}

// TestAlone replays the scripts that need a host of their own, one after the other: the kernel's
// inotify limits allow only a few clusters at once.
func TestAlone(t *testing.T) {
	files, err := filepath.Glob("testdata/alone/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if name == "bundle" {
				writeBundle(t, h)
			}
			addons := addonsOf(t, h)
			t.Run("host", func(t *testing.T) {
				runScripts(t, file, func(t *testing.T) *session {
					return &session{t: t, host: h, addons: addons}
				})
			})
			h.Close()
		})
	}
}

// newHost makes a host whose servers find all images of the scripts.
func newHost(t *testing.T) *cluster.Host {
	t.Helper()
	h := cluster.NewHost(t, cluster.HostConfig{Name: "node1"})
	// On the host's overlay a file has another device number than its directory, and the kubelet
	// would not count it for its volume.
	h.Run(t, "sh", "-c", "mkdir -p /var/lib/kubelet && mount -t tmpfs -o mode=0755 tmpfs /var/lib/kubelet")
	kuard, err := makeKuard()
	if err != nil {
		t.Fatal(err)
	}
	root := cluster.Root()
	for _, makeImage := range []func() (images.Image, error){
		images.Busybox, images.Tools, images.Redis,
		func() (images.Image, error) { return images.Program(images.WebName, root, "./test/images/web") },
		func() (images.Image, error) {
			return images.Program(images.GuestbookName, root, "./test/images/guestbook")
		},
		func() (images.Image, error) {
			return images.Program(images.ExtensionName, root, "./test/images/extension")
		},
		func() (images.Image, error) {
			// This must not be the same image by another name: a user without its credentials may
			// not use it under any name.
			served := kuard
			served.Env = append(slices.Clone(kuard.Env), "ORIGIN=registry")
			return images.Registry(root, served)
		},
	} {
		im, err := makeImage()
		if err != nil {
			t.Fatal(err)
		}
		preload(t, h, im)
	}
	preload(t, h, kuard)
	// An image that a user has built and has not loaded yet.
	kuard.Name = "localhost/mine/kuard:1"
	if err := kuard.Save(filepath.Join(h.Dir, "kuard.tar")); err != nil {
		t.Fatal(err)
	}
	writeWrappers(t, h)
	return h
}

// addClients gives a host the images of clients, and the Go client also as a program.
func addClients(t *testing.T, h *cluster.Host) {
	t.Helper()
	python, err := images.Python()
	if err != nil {
		t.Fatal(err)
	}
	preload(t, h, python)
	program, err := images.Program(images.ClientName, cluster.Root(), "./test/images/client")
	if err != nil {
		t.Fatal(err)
	}
	preload(t, h, program)
	if err := os.WriteFile(filepath.Join(h.Dir, "client"), program.Files[0].Data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// writeBundle writes the images of stores of metrics and logs into the archive directory bundle.
func writeBundle(t *testing.T, h *cluster.Host) {
	t.Helper()
	dir := filepath.Join(h.Dir, "bundle")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, makeImage := range map[string]func() (images.Image, error){
		"prometheus": images.Prometheus, "influxdb": images.InfluxDB, "rsyslog": images.Rsyslog,
	} {
		im, err := makeImage()
		if err != nil {
			t.Fatal(err)
		}
		if err := im.Save(filepath.Join(dir, name+".tar")); err != nil {
			t.Fatal(err)
		}
	}
}

func makeKuard() (images.Image, error) {
	im, err := images.Program(images.KuardName, cluster.Root(), "./test/images/kuard")
	if err != nil {
		return im, err
	}
	return images.WithShell(im)
}

func preload(t *testing.T, h *cluster.Host, im images.Image) {
	t.Helper()
	dir := h.Path("/var/lib/mote/images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile(`[^a-z0-9]`).ReplaceAllString(im.Name, "-")
	if err := im.Save(filepath.Join(dir, name+".tar")); err != nil {
		t.Fatal(err)
	}
}

// addonsOf reads the list of addons from the program's help.
func addonsOf(t *testing.T, h *cluster.Host) []string {
	t.Helper()
	help := h.Run(t, "mote", "server", "--help")
	line := regexp.MustCompile(`--disable .*\(([a-z, ]+)\)`).FindStringSubmatch(help)
	if line == nil {
		t.Fatalf("the help of mote server lists no addons:\n%s", help)
	}
	return strings.FieldsFunc(line[1], func(r rune) bool { return r == ',' || r == ' ' })
}

func runScripts(t *testing.T, pattern string, newSession func(t *testing.T) *session) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in %s: %v", pattern, err)
	}
	work := newSession(t)
	testscript.RunT(scriptT{t}, testscript.Params{
		Files:              files,
		RequireUniqueNames: true,
		WorkdirRoot:        work.host.Dir, // the host has it under the same path
		Cmds:               commands(),
		Condition: func(cond string) (bool, error) {
			addon, ok := strings.CutPrefix(cond, "addon:")
			if !ok {
				return false, fmt.Errorf("there are conditions addon:NAME, not %q", cond)
			}
			return slices.Contains(work.addons, addon), nil
		},
		Setup: func(env *testscript.Env) error {
			return newSession(env.T().(scriptT).T).setUp(env)
		},
	})
}

// scriptT adapts a test to testscript's interface.
type scriptT struct{ *testing.T }

func (t scriptT) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { f(scriptT{t}) })
}

// Verbose is for the steps of a script that passes; one that fails shows them anyway.
func (scriptT) Verbose() bool { return false }

// writeWrappers writes the programs in the PATH of scripts: each enters the host.
func writeWrappers(t *testing.T, h *cluster.Host) {
	t.Helper()
	bin := binDir(h)
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	enter := func(namespaces, command string) string {
		return fmt.Sprintf("#!/bin/sh\nexec nsenter -t %d %s -- /bin/sh -c 'cd \"$1\" && shift && "+
			"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin exec %s \"$@\"' sh \"$PWD\" \"$@\"\n", h.PID(), namespaces, command)
	}
	// Entering a PID namespace needs a process in between, and a signal of the script would end
	// that process instead of the command. A command that may signal others must be in the PID
	// namespace; clients need not be.
	const client, all = "-m -n -u -i", "-m -n -u -i -p"
	for name, text := range map[string]string{
		"host":    enter(all, ""),
		"mote":    enter(all, "mote"),
		"kubectl": enter(client, "mote kubectl"),
		"curl":    enter(client, "curl -sS -m 10"),
		"helm":    enter(client, filepath.Join("/.machine", cluster.Root(), "bin", "helm")),
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func binDir(h *cluster.Host) string { return filepath.Join(h.Dir, "bin") }

// makeNamespace creates a script's namespace and waits until pods can be created in it.
func (s *session) makeNamespace(name string) error {
	client, err := s.server.Client()
	if err != nil {
		return err
	}
	ctx := s.t.Context()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make namespace %s: %w", name, err)
	}
	cluster.Wait(s.t, accountTimeout, "the service account of namespace "+name, func() error {
		_, err := client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return nil
}
