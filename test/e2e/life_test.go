package e2e

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

func testImages(t *testing.T, h *cluster.Host) {
	features.Row(t, "A6", "archives in both formats are imported and run; rubbish is one line")
	list := h.Run(t, "mote", "image", "list")
	wantContains(t, "image list", list, images.BusyboxName, images.WebName)

	im := busybox(t)
	for name, write := range map[string]func(*bytes.Buffer) error{
		"localhost/test/docker:1": func(b *bytes.Buffer) error { return im.WriteDocker(b) },
		"localhost/test/oci:1":    func(b *bytes.Buffer) error { return im.WriteOCI(b) },
	} {
		im.Name = name
		var archive bytes.Buffer
		if err := write(&archive); err != nil {
			t.Fatal(err)
		}
		if r := h.Try(t, &archive, "mote", "image", "import", "-"); r.Code != 0 {
			t.Errorf("image import - of %s: exit code %d: %s", name, r.Code, r.Stderr)
		}
		h.Kubectl(t, "run", "imported", "--image="+name, "--restart=Never", "--", "true")
		h.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/imported", "--timeout="+podTimeout.String())
		h.Kubectl(t, "delete", "pod", "imported", "--now")
	}
	// Images in the images directory must survive the kubelet's garbage collection.
	wantContains(t, "labels of the preloaded image",
		h.Run(t, "mote", "ctr", "-n", "k8s.io", "images", "list", "name=="+images.WebName), "io.cri-containerd.pinned=pinned")

	testImageNames(t, h)
	if r := h.Try(t, strings.NewReader("not a tar"), "mote", "image", "import", "-"); r.Code != 1 || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("import of rubbish: %+v, want exit code 1 and one line", r)
	}
}

// testImageNames runs pods that name an imported image by digest, by the tag latest, and one that
// is imported late.
func testImageNames(t *testing.T, h *cluster.Host) {
	features.Row(t, "A6", "imported images run by digest and with pull policy Always; an image that is missing is told of until it is imported")
	im := busybox(t)
	const late = "ghcr.io/test/late:1"
	h.Kubectl(t, "run", "late", "--image="+late, "--restart=Never", "--", "true")
	waitTrouble(t, h, "registry ghcr.io: does not answer, and pods wait for "+late, true)
	load := func(name string) {
		im.Name = name
		var archive bytes.Buffer
		if err := im.WriteOCI(&archive); err != nil {
			t.Fatal(err)
		}
		if r := h.Try(t, &archive, "mote", "image", "import", "-"); r.Code != 0 || strings.TrimSpace(r.Stdout) != name {
			t.Fatalf("image import of %s: %+v", name, r)
		}
	}
	load(late)
	load("docker.io/test/named:latest")
	digest := strings.TrimSpace(h.Run(t, "sh", "-c", `mote image list -o json | grep -A1 '"docker.io/test/named:latest"' | grep -o 'sha256:[0-9a-f]*'`))
	h.Kubectl(t, "run", "latest", "--image=test/named", "--restart=Never", "--", "true") // always pulls
	h.Kubectl(t, "run", "digest", "--image=test/named@"+digest, "--restart=Never", "--", "true")
	h.Kubectl(t, "run", "both", "--image=test/named:latest@"+digest, "--restart=Never", "--", "true")
	for _, pod := range []string{"latest", "digest", "both"} {
		h.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/"+pod, "--timeout="+podTimeout.String())
	}
	waitTrouble(t, h, "registry ghcr.io", false)
	h.Kubectl(t, "delete", "pod", "latest", "digest", "both", "late", "--now")
	h.Run(t, "mote", "image", "rm", late)
}

const auditLog = "/var/log/audit.log"

// auditCSINodes returns the flags with which the apiserver logs the users that write CSINodes. The
// objects themselves do not show this: all components of one process share a field manager.
func auditCSINodes(t *testing.T, h *cluster.Host) []string {
	t.Helper()
	const policy, file = "/tmp/audit.yaml", `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, update, patch]
  resources: [{group: storage.k8s.io, resources: [csinodes]}]
- level: None
`
	if err := os.WriteFile(h.Path(policy), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--apiserver-arg=audit-policy-file=" + policy, "--apiserver-arg=audit-log-path=" + auditLog}
}

// testCSI checks that the kubelet, not the controller manager of the same process, owns the CSI
// plugin's package-wide state: it writes CSINode and mounts a volume.
func testCSI(t *testing.T, h *cluster.Host) {
	features.Row(t, "E4", "a CSI driver registers and its volume is mounted")
	h.Apply(t, csiManifest)
	h.WaitKubectl(t, podTimeout, func(out string) bool { return out == "csi.test.mote e2e" },
		"get", "csinode", "e2e", "-o", "jsonpath={range .spec.drivers[*]}{.name} {.nodeID}{end}")
	writer := regexp.MustCompile(`"username":"([^"]*)"`)
	audit, err := os.ReadFile(h.Path(auditLog))
	if err != nil {
		t.Fatal(err)
	}
	writers := writer.FindAllSubmatch(audit, -1)
	if len(writers) == 0 {
		t.Errorf("the audit log names no writer of CSINode:\n%s", audit)
	}
	for _, m := range writers {
		if string(m[1]) != "system:node:e2e" {
			t.Errorf("CSINode was written by %s; want only the kubelet", m[1])
		}
	}
	h.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/csi-user", "--timeout="+podTimeout.String())
	if got := h.Kubectl(t, "logs", "csi-user"); got != "csi.test.mote\n" {
		t.Errorf("the CSI volume's file holds %q", got)
	}
	// Delete them one after the other: without its driver the volume could not be unmounted any
	// more, and the pod would stay.
	h.Kubectl(t, "delete", "pod", "csi-user", "--now")
	h.Kubectl(t, "delete", "pod", "csi-driver", "--now")
}

// testStop stops a server in each way and starts it again: containers continue to run unless the
// command stops them.
func testStop(t *testing.T, s *cluster.Server) {
	features.Row(t, "A2", "stop, signals and kill -9 leave the containers alone; the next start finds them")
	h := s.Host
	before := h.ContainerPIDs(t)
	if len(before) == 0 {
		t.Fatal("no containers run")
	}
	restart := func() {
		s = h.StartServer(t)
		s.WaitReady(t)
	}
	same := func(how string) {
		t.Helper()
		if after := h.ContainerPIDs(t); !maps.Equal(before, after) {
			t.Errorf("containers before %s: %v, after: %v", how, before, after)
		}
	}

	h.Run(t, "mote", "stop")
	if code := s.WaitEnd(t, cluster.StopTimeout); code != 0 {
		t.Errorf("exit code %d after mote stop", code)
	}
	same("mote stop")
	renameHost(t, h)
	restart()
	same("the start after mote stop")
	wantSameNode(t, h)

	if code := s.Signal(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	t.Run("log", func(t *testing.T) {
		features.Row(t, "G7", "a healthy restart and stop log no error")
		wantNoErrors(t, s, "a restart and a stop")
	})
	restart()
	if code := s.Signal(t, syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d after SIGINT", code)
	}
	restart()
	s.Kill()
	restart()
	same("kill -9 and start")
	if got := h.Kubectl(t, "get", "pod", "box", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("box was started again %s times", got)
	}
	// mote's components become ready one after the other.
	cluster.Wait(t, podTimeout, "mote status to be content", func() error {
		if r := h.Try(t, nil, "mote", "status"); r.Code != 0 {
			return fmt.Errorf("%s%s", r.Stdout, r.Stderr)
		}
		return nil
	})

	h.Run(t, "mote", "stop", "--all")
	s.WaitEnd(t, cluster.StopTimeout)
	if left := h.ContainerPIDs(t); len(left) != 0 {
		t.Errorf("containers run after mote stop --all: %v", left)
	}
	corruptPayload(t, h)
	restart()
	h.Kubectl(t, "rollout", "status", "deployment/web", "--timeout="+podTimeout.String())
	// The Deployment's status may be that of the previous run.
	cluster.Wait(t, podTimeout, "containers as before", func() error {
		if now := slices.Sorted(maps.Values(h.ContainerPIDs(t))); !slices.Equal(now, slices.Sorted(maps.Values(before))) {
			return fmt.Errorf("there are %v", now)
		}
		return nil
	})
	h.Run(t, "mote", "stop")
	s.WaitEnd(t, cluster.StopTimeout)
}

// renameHost gives the host of a stopped mote another name, and removes the record of the node's
// name, as if an older mote had created the data directory.
func renameHost(t *testing.T, h *cluster.Host) {
	t.Helper()
	h.Run(t, "hostname", "renamed")
	if r := h.Try(t, nil, "mote", "server", "--node-name=other"); r.Code != 1 || !strings.Contains(r.Stderr, `node-name is "other"`) ||
		!strings.Contains(r.Stderr, `belongs to node "e2e"`) {
		t.Errorf("mote server --node-name=other: %+v, want a refusal with both names", r)
	}
	h.Run(t, "rm", "/var/lib/mote/agent/node-name")
}

// wantSameNode checks the node of a renamed host.
func wantSameNode(t *testing.T, h *cluster.Host) {
	t.Helper()
	features.Row(t, "A27", "on a renamed host the node keeps its name")
	if nodes := h.Kubectl(t, "get", "nodes", "-o", "name"); nodes != "node/e2e\n" {
		t.Errorf("nodes %q, want e2e alone", nodes)
	}
	if name := h.Run(t, "cat", "/var/lib/mote/agent/node-name"); name != "e2e\n" {
		t.Errorf("the record of the node's name is %q", name)
	}
	wantContains(t, "mote status", h.Try(t, nil, "mote", "status").Stdout, `the host is called "renamed" now; the node keeps the name e2e`)
}

// corruptPayload damages each unpacked program: one is cut short, the others lose a byte. Pods that
// run afterwards prove that mote noticed it.
func corruptPayload(t *testing.T, h *cluster.Host) {
	t.Helper()
	programs, err := filepath.Glob(h.Path("/var/lib/mote/payload/*/*"))
	if err != nil || len(programs) < 5 {
		t.Fatalf("unpacked programs: %v, %v", programs, err)
	}
	for i, path := range programs {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content[len(content)/2] ^= 0xff
		if i == 0 {
			content = content[:len(content)/2]
		}
		// Write in place: mote may check only the directory and the file's times.
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// testReset removes mote after all tests have used it, and compares the host with its state before.
func testReset(t *testing.T, h *cluster.Host, before []string) {
	features.Row(t, "A2", "reset leaves no file, mount, link, rule, cgroup or process")
	h.Run(t, "mote", "reset", "--yes")
	h.Run(t, "rm", "-f", "/tmp/audit.yaml", auditLog)
	wantAsBefore(t, h, before)
}

// TestResetOnPrivateRoot resets on a host without shared mounts, where the kubelet bind-mounts its
// directory on itself. That mount must go, and the operator's mounts must stay.
func TestResetOnPrivateRoot(t *testing.T) {
	features.Row(t, "A2", "stop --all and reset where / is not shared take the kubelet's mount along, and not the operator's")
	for name, prepare := range map[string]string{
		"bare":                  "true",
		"operator's own bind":   "mkdir -p /var/lib/kubelet && mount --bind /var/lib/kubelet /var/lib/kubelet",
		"link to another place": "mkdir -p /srv/kubelet && ln -s /srv/kubelet /var/lib/kubelet",
	} {
		t.Run(name, func(t *testing.T) {
			h := cluster.NewHost(t, cluster.HostConfig{})
			h.Run(t, "mount", "--make-rprivate", "/")
			h.Run(t, "sh", "-c", prepare)
			before := h.State(t)
			mounts := func() int { return strings.Count(h.Run(t, "cat", "/proc/self/mountinfo"), "/kubelet ") }
			operators := mounts()

			s := h.StartServer(t)
			s.WaitReady(t)
			s.Kill()
			s = h.StartServer(t)
			s.WaitReady(t)
			if mounts() <= operators {
				t.Fatal("the kubelet has bound nothing: this test shows nothing")
			}
			for range 2 {
				h.Run(t, "mote", "stop", "--all")
				s.WaitEnd(t, cluster.StopTimeout)
				if n := mounts(); n != operators {
					t.Errorf("%d mounts of the kubelet's directory after mote stop --all, %d before the first start", n, operators)
				}
			}
			h.Run(t, "mote", "reset", "--yes")
			wantAsBefore(t, h, before)
		})
	}
}

// wantAsBefore compares the host's state with that before the first start.
func wantAsBefore(t *testing.T, h *cluster.Host, before []string) {
	t.Helper()
	// The first kubelet on a machine sets these for the whole kernel; a reset leaves them
	// (agent/README.md).
	kernels := func(line string) bool {
		return strings.HasPrefix(line, "sysctl vm.overcommit") || strings.HasPrefix(line, "sysctl kernel.panic")
	}
	before, after := slices.DeleteFunc(slices.Clone(before), kernels), slices.DeleteFunc(h.State(t), kernels)
	if diff := cluster.Diff(before, after); diff != "" {
		t.Errorf("mote reset changed the host's state from before the first start:\n%s", diff)
	}
}
