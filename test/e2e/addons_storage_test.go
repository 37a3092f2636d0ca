package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

//go:embed testdata/storage.yaml
var storageManifest string

//go:embed testdata/storage-clone.yaml
var cloneManifest string

const (
	volumesDir = "/var/lib/mote/volumes"
	// movedDir is the new place of the data directory.
	movedDir = "/tmp/moved"
)

// moved returns the flags for a server on the moved directory. The kubelet's directory belongs to
// the old one.
func moved() []string { return []string{"--data-dir=" + movedDir, "--kubelet-dir=/tmp/kubelet"} }

// TestAddonStorage claims volumes, moves the data directory between two starts with a pod that uses
// it, and removes volumes.
func TestAddonStorage(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	h.Preload(t, busybox(t))
	s := h.StartServer(t)
	s.WaitReady(t)
	h.WaitKubectl(t, podTimeout, func(out string) bool { return strings.Contains(out, "local (default)") }, "get", "storageclass")
	h.Apply(t, storageManifest)
	h.Kubectl(t, "wait", "--for=condition=Ready", "pod/writer", "--timeout="+podTimeout.String())

	t.Run("bound", func(t *testing.T) { testStorageBound(t, h) })
	t.Run("too large", func(t *testing.T) { testStorageTooLarge(t, h) })
	t.Run("expansion", func(t *testing.T) { testStorageExpansion(t, h) })
	s = testStorageMoved(t, s) // no subtest: a server ends with the test that started it
	t.Run("retain", func(t *testing.T) { testStorageRetain(t, h) })
	t.Run("clone", func(t *testing.T) { testStorageClone(t, h) })
	t.Run("delete", func(t *testing.T) { testStorageDelete(t, h) })
	t.Run("off and on", func(t *testing.T) { testStorageOffAndOn(t, s) })
}

// volumeOf returns the name of a claim's volume.
func volumeOf(t *testing.T, h *cluster.Host, claim string) string {
	t.Helper()
	var name string
	h.WaitKubectl(t, podTimeout, func(out string) bool { name = out; return out != "" }, "get", "pvc", claim, "-o", "jsonpath={.spec.volumeName}")
	return name
}

// dirOf returns the directory of a volume below dir, "" when there is none.
func dirOf(t *testing.T, h *cluster.Host, dir, volume string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(h.Path(dir), volume+"_*"))
	if err != nil || len(found) > 1 {
		t.Fatalf("directories of volume %s: %v, %v", volume, found, err)
	}
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

func testStorageBound(t *testing.T, h *cluster.Host) {
	features.Row(t, "E3", "a claim without a class is bound, owned by the fsGroup, tied to the node; a static one binds too")
	volume := volumeOf(t, h, "data")
	dir := dirOf(t, h, volumesDir, volume)
	// The writer is Ready before it has written.
	cluster.Wait(t, podTimeout, "the volume's file on the host", func() error {
		got, err := os.ReadFile(filepath.Join(dir, "file"))
		if err == nil && string(got) != "kept\n" {
			err = fmt.Errorf("it holds %q", got)
		}
		return err
	})
	wantContains(t, "the mounted directory", h.Kubectl(t, "exec", "writer", "--", "stat", "-c", "%g %a", "/data"), "2000 2777")
	wantContains(t, "the volume", h.Kubectl(t, "get", "pv", volume, "-o",
		"jsonpath={.spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values[0]} {.spec.capacity.storage} {.spec.persistentVolumeReclaimPolicy}"),
		"e2e 100Mi Delete")
	for _, claim := range []string{"kept", "static"} {
		h.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/"+claim, "--timeout="+podTimeout.String())
	}
	if got := volumeOf(t, h, "static"); got != "static" {
		t.Errorf("the claim without class is bound to %s", got)
	}
}

func testStorageTooLarge(t *testing.T, h *cluster.Host) {
	features.Row(t, "E3", "a claim that does not fit the disk says so")
	h.WaitKubectl(t, podTimeout, func(out string) bool {
		return strings.Contains(out, "the claim wants 900Ti, but the disk of") && strings.Contains(out, "free some, or ask for less")
	}, "get", "events", "--field-selector", "involvedObject.name=huge,reason=ProvisioningFailed", "-o", "jsonpath={.items[*].message}")
	if got := h.Kubectl(t, "get", "pvc", "huge", "-o", "jsonpath={.status.phase}"); got != "Pending" {
		t.Errorf("the claim that does not fit is %s", got)
	}
	waitTrouble(t, h, "storage: PersistentVolumeClaim default/huge: the claim wants 900Ti", true)
	h.Kubectl(t, "delete", "pod/greedy", "pvc/huge", "--now")
	waitTrouble(t, h, "default/huge", false)
}

func testStorageExpansion(t *testing.T, h *cluster.Host) {
	features.Row(t, "E5", "expansion is refused with the reason")
	r := h.Try(t, nil, "mote", "kubectl", "patch", "pvc", "data", "-p", `{"spec":{"resources":{"requests":{"storage":"200Mi"}}}}`)
	if r.Code == 0 || !strings.Contains(r.Stderr, "must support resize") {
		t.Errorf("expansion: exit code %d, want it refused with the reason: %s", r.Code, r.Stderr)
	}
}

// testStorageMoved moves the data directory while everything is stopped, as an operator does with a
// larger disk.
func testStorageMoved(t *testing.T, s *cluster.Server) *cluster.Server {
	features.Row(t, "E6", "volumes survive a moved data directory")
	h := s.Host
	h.Run(t, "mote", "stop", "--all")
	s.WaitEnd(t, cluster.StopTimeout)
	// The old directory is a mount point here, so it stays, with the kubeconfig that the tests use.
	h.Run(t, "sh", "-c", "cp -a /var/lib/mote "+movedDir+" && rm -rf /var/lib/mote/* && cp "+movedDir+"/kubeconfig /var/lib/mote/")
	s = h.StartServer(t, moved()...)
	s.WaitReady(t)
	// `stop --all` has ended the containers: a container that runs now has mounted its volume
	// again.
	cluster.Wait(t, podTimeout, "the writer to write again", func() error {
		got, err := os.ReadFile(filepath.Join(dirOf(t, h, movedDir+"/volumes", volumeOf(t, h, "data")), "file"))
		if err == nil && string(got) != "kept\nkept\n" {
			err = fmt.Errorf("the file holds %q", got)
		}
		return err
	})
	return s
}

func testStorageRetain(t *testing.T, h *cluster.Host) {
	features.Row(t, "E3", "Retain keeps the directory")
	volume := volumeOf(t, h, "kept")
	h.Kubectl(t, "delete", "pvc", "kept")
	h.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Released", "pv/"+volume, "--timeout="+podTimeout.String())
	h.Kubectl(t, "delete", "pv", volume)
	if dirOf(t, h, movedDir+"/volumes", volume) == "" {
		t.Error("the directory of a retained volume is gone")
	}
}

// testStorageClone claims copies of the writer's volume: mote refuses while the writer runs, and
// makes them when it does not.
func testStorageClone(t *testing.T, h *cluster.Host) {
	features.Row(t, "E3", "a claim from a claim is a copy of it; from anything else it is refused with an event")
	h.Apply(t, cloneManifest)
	refused := func(claim, want string) {
		h.WaitKubectl(t, podTimeout, func(out string) bool { return strings.Contains(out, want) },
			"get", "events", "--field-selector", "involvedObject.name="+claim+",reason=ProvisioningFailed", "-o", "jsonpath={.items[*].message}")
		if got := h.Kubectl(t, "get", "pvc", claim, "-o", "jsonpath={.status.phase}"); got != "Pending" {
			t.Errorf("claim %s is %s", claim, got)
		}
	}
	refused("from-snapshot", "cannot fill a volume from VolumeSnapshot.snapshot.storage.k8s.io nightly")
	refused("from-populator", "cannot fill a volume from Backup.example.com last")
	refused("from-claim", "pod writer uses it")
	h.Kubectl(t, "delete", "pod/writer", "--now")
	h.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/reader", "--timeout="+podTimeout.String())
	wantContains(t, "what the clone has", h.Kubectl(t, "logs", "reader"), "kept\nkept\n")
	h.Kubectl(t, "delete", "pod/reader", "pvc/from-claim", "pvc/from-snapshot", "pvc/from-populator", "--now")
}

func testStorageDelete(t *testing.T, h *cluster.Host) {
	features.Row(t, "E3", "Delete removes the directory")
	volume := volumeOf(t, h, "data")
	h.Kubectl(t, "delete", "pvc/data", "--now")
	h.Kubectl(t, "wait", "--for=delete", "pv/"+volume, "--timeout="+podTimeout.String())
	if dir := dirOf(t, h, movedDir+"/volumes", volume); dir != "" {
		t.Errorf("the deleted volume's directory is still there: %s", dir)
	}
}

func testStorageOffAndOn(t *testing.T, s *cluster.Server) {
	features.Row(t, "E3", "the class switched off leaves nothing; another default class stays the default")
	h := s.Host
	restart := func(args ...string) {
		s.Signal(t, syscall.SIGTERM)
		s = h.StartServer(t, append(moved(), args...)...)
		s.WaitReady(t)
	}
	restart("--disable=storage")
	h.WaitKubectl(t, podTimeout, func(out string) bool { return out == "storageclass.storage.k8s.io/keep\n" }, "get", "storageclass", "-o", "name")
	restart()
	h.WaitKubectl(t, podTimeout, func(out string) bool { return strings.Contains(out, "local (default)") }, "get", "storageclass")
	// A user who makes another class the default is not overruled at the next start.
	h.Kubectl(t, "annotate", "storageclass", "local", "storageclass.kubernetes.io/is-default-class=false", "--overwrite")
	restart()
	if out := h.Kubectl(t, "get", "storageclass"); strings.Contains(out, "(default)") {
		t.Errorf("the default class came back:\n%s", out)
	}
}
