package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

const (
	// readyTimeout is the time from the shell to node Ready, all of it emulated.
	readyTimeout = 20 * time.Minute
	megabytes    = 2048
	// The power is cut after cutAfter acknowledged objects, while the others are being written.
	cutAfter, objects = 40, 400
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == writerName {
		if err := runWriter(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	cluster.Main(m, "machine")
}

// TestPowerCut boots a machine with cgroup v2, runs a pod on it, cuts its power while objects are
// written, and boots it again. All acknowledged objects must be there, and the pod must run.
func TestPowerCut(t *testing.T) {
	features.Row(t, "A27", "a power cut under load loses nothing acknowledged; the node is Ready again unattended")
	k, err := findKernel(os.Getenv("MOTE_MACHINE_KERNEL"))
	if err != nil {
		t.Fatal(err)
	}
	web, err := images.Program(images.WebName, cluster.Root(), "./test/images/web")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk, initrd := filepath.Join(dir, "disk.img"), filepath.Join(dir, "initrd")
	if err := makeDisk(disk, k, cluster.Binary(), "mote.rc", func(root string) error {
		return errors.Join(web.Save(filepath.Join(root, "var/lib/mote/images/web.tar")),
			os.WriteFile(filepath.Join(root, "usr/local/bin/web"), web.Files[0].Data, 0o755))
	}); err != nil {
		t.Fatal(err)
	}
	if err := makeInitrd(initrd, k); err != nil {
		t.Fatal(err)
	}

	start := time.Now()
	g := boot(t, k, initrd, disk, megabytes)
	t.Logf("shell after %v", time.Since(start).Round(time.Second))
	if got := strings.TrimSpace(g.run(t, "grep -c cgroup2 /proc/mounts; ls /sys/fs/cgroup/cgroup.controllers")); !strings.HasPrefix(got, "1") {
		t.Fatalf("the machine does not have cgroup v2 alone: %s", got)
	}
	waitReady(t, g)
	t.Logf("node Ready after %v", time.Since(start).Round(time.Second))
	// Retry until the namespace has its service account, without which no pod can be created.
	g.waitFor(t, readyTimeout, "kubectl apply -f /etc/pods.yaml")
	waitWeb(t, g)
	t.Logf("web answers after %v", time.Since(start).Round(time.Second))
	acknowledged := writeAndCut(t, g)

	start = time.Now()
	g = boot(t, k, initrd, disk, megabytes)
	waitReady(t, g)
	t.Logf("node Ready again after %v", time.Since(start).Round(time.Second))
	held := g.run(t, "kubectl get configmaps -o name")
	for _, name := range acknowledged {
		if !strings.Contains(held, name+"\n") {
			t.Errorf("%s was acknowledged before the power was cut and is lost", name)
		}
	}
	waitWeb(t, g)
	t.Logf("web answers again after %v; %d acknowledged objects are there", time.Since(start).Round(time.Second), len(acknowledged))
}

// waitReady waits until the node of this boot is Ready. The object in the datastore has the status
// Ready even before this boot has renewed it.
func waitReady(t *testing.T, g *guest) {
	t.Helper()
	g.waitFor(t, readyTimeout, "mote status")
	g.waitFor(t, readyTimeout, "kubectl wait --for=condition=Ready node/machine --timeout=60s")
}

func waitWeb(t *testing.T, g *guest) {
	t.Helper()
	g.waitFor(t, readyTimeout, "kubectl wait --for=condition=Ready pod/web --timeout=60s")
	for _, address := range []string{"10.43.0.80", "10.42.0.1:30080"} {
		g.waitFor(t, readyTimeout, "test \"$(web fetch http://"+address+")\" = web")
	}
}

// writeAndCut creates objects with one kubectl, cuts the power meanwhile, and returns the objects
// that the console has shown as created.
func writeAndCut(t *testing.T, g *guest) []string {
	t.Helper()
	g.run(t, fmt.Sprintf(`for i in $(seq %d); do
		printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: object-%%d}\ndata: {value: "%%d"}\n---\n' $i $i
	done >/tmp/objects.yaml`, objects))
	created := regexp.MustCompile(`configmap/object-\d+ created`)
	out, _ := g.cutDuring(t, "kubectl create -f /tmp/objects.yaml", func(out string) bool {
		return len(created.FindAllString(out, -1)) >= cutAfter
	})
	var names []string
	for _, line := range created.FindAllString(out, -1) {
		names = append(names, strings.TrimSuffix(line, " created"))
	}
	if len(names) == 0 || len(names) >= objects {
		t.Fatalf("%d of %d objects were created before the power was cut", len(names), objects)
	}
	return names
}
