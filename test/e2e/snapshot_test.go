package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// TestSnapshot loses a namespace and restores it. Then it loses the whole machine, and restores
// another one from the snapshot file.
func TestSnapshot(t *testing.T) {
	features.Row(t, "A14", "a namespace is deleted and restored, then on another machine; tokens stay valid")
	h := cluster.NewHost(t, cluster.HostConfig{Name: "one"})
	h.Preload(t, busybox(t))
	s := h.StartServer(t)
	s.WaitReady(t)
	h.Kubectl(t, "create", "namespace", "keep")
	h.Kubectl(t, "create", "secret", "generic", "password", "-n", "keep", "--from-literal=password=swordfish")
	h.Kubectl(t, "run", "box", "-n", "keep", "--image=localhost/test/busybox:1", "--image-pull-policy=Never", "--", "sleep", "1000000")
	h.Kubectl(t, "wait", "-n", "keep", "--for=condition=Ready", "pod/box", "--timeout="+podTimeout.String())
	token := strings.TrimSpace(h.Kubectl(t, "create", "token", "default", "-n", "keep", "--duration=24h"))
	wantToken(t, h, token)

	written := saveWhileWriting(t, s, "before")
	h.Kubectl(t, "delete", "pod", "box", "-n", "keep", "--now")
	h.Kubectl(t, "delete", "namespace", "keep")
	h.Kubectl(t, "create", "namespace", "later")
	revision := revisionOf(t, h)
	if r := h.Try(t, nil, "mote", "datastore", "snapshot", "restore", "before"); r.Code != 1 || !strings.Contains(r.Stderr, `"mote stop"`) {
		t.Errorf("restore under a running mote: %+v, want a refusal with advice", r)
	}
	h.Run(t, "mote", "stop", "--all")
	s.WaitEnd(t, cluster.StopTimeout)
	h.Run(t, "mote", "datastore", "snapshot", "restore", "before")
	repairByVerb(t, h)
	refuseLostKeys(t, h)

	s = h.StartServer(t)
	s.WaitReady(t)
	wantRestored(t, h, token, written)
	wantRepairTold(t, h)
	if now := revisionOf(t, h); now <= revision {
		t.Errorf("revision %d after the restore, %d before it", now, revision)
	}
	h.Kubectl(t, "wait", "-n", "keep", "--for=condition=Ready", "pod/box", "--timeout="+podTimeout.String())
	wantContains(t, "datastore check", h.Run(t, "mote", "datastore", "check"), "no problems found")
	h.Run(t, "mote", "stop", "--all")
	s.WaitEnd(t, cluster.StopTimeout)

	file, err := os.ReadFile(h.Path("/var/lib/mote/datastore/snapshots/before.tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	restoreElsewhere(t, file, token, written)
}

// repairs is the file of the repairs that no server has reported.
const repairs = "/var/lib/mote/datastore/state.repairs.json"

// repairByVerb damages a stopped store. A command then opens it, which repairs it.
func repairByVerb(t *testing.T, h *cluster.Host) {
	t.Helper()
	for _, name := range []string{"state.wal.0", "state.wal.1"} {
		if err := os.Truncate(h.Path("/var/lib/mote/datastore/"+name), 0); err != nil {
			t.Fatal(err)
		}
	}
	if r := h.Try(t, nil, "mote", "datastore", "check"); r.Code != 1 || !strings.Contains(r.Stdout, "damaged write-ahead log") {
		t.Errorf("check of a damaged log: %+v, want it to be told", r)
	}
	h.Run(t, "mote", "datastore", "get", "/registry/namespaces/default")
	if _, err := os.Stat(h.Path(repairs)); err != nil {
		t.Errorf("a verb's repair is not kept: %v", err)
	}
}

// refuseLostKeys removes the keys of a stopped cluster: a start must create no new ones, and name
// the snapshot that has the keys.
func refuseLostKeys(t *testing.T, h *cluster.Host) {
	t.Helper()
	h.Run(t, "mv", "/var/lib/mote/server/tls", "/root/tls")
	r := h.Try(t, nil, "mote", "server")
	if r.Code != 1 {
		t.Errorf("a start without the cluster's keys ended with %d", r.Code)
	}
	wantContains(t, "the refusal", r.Stderr, "its keys are missing in /var/lib/mote/server", "tls/client-ca.key",
		"mote datastore snapshot restore before.tar.zst", "mote certs init")
	if _, err := os.Stat(h.Path("/var/lib/mote/server/tls")); err == nil {
		t.Error("new keys were made")
	}
	h.Run(t, "mv", "/root/tls", "/var/lib/mote/server/tls")
}

// wantRepairTold checks that the status and an event report a repair. After that the repair is not
// kept any more.
func wantRepairTold(t *testing.T, h *cluster.Host) {
	t.Helper()
	waitTrouble(t, h, "datastore repaired", true)
	cluster.Wait(t, time.Minute, "an event for the repair", func() error {
		events := h.Kubectl(t, "get", "events", "-n", "default", "--field-selector", "reason=DatastoreRepaired", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(events, "set the log aside") {
			return fmt.Errorf("events %q", events)
		}
		_, err := os.Stat(h.Path(repairs))
		if err == nil {
			return fmt.Errorf("%s is still there", repairs)
		}
		return nil
	})
}

// restoreElsewhere restores the cluster on another machine, with another name.
func restoreElsewhere(t *testing.T, file []byte, token string, written int64) {
	other := cluster.NewHost(t, cluster.HostConfig{Name: "two"})
	other.Preload(t, busybox(t))
	path := filepath.Join(other.Dir, "before.tar.zst")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	r := other.Try(t, nil, "mote", "datastore", "snapshot", "restore", path)
	wantContains(t, "restore on another machine", r.Stderr, "mote kubectl delete node one")
	s := other.StartServer(t)
	cluster.Wait(t, cluster.ReadyTimeout, "the first node is forgotten", func() error {
		if r := other.Try(t, nil, "mote", "kubectl", "delete", "node", "one", "--ignore-not-found"); r.Code != 0 {
			return fmt.Errorf("kubectl delete node: %s", r.Stderr)
		}
		return nil
	})
	s.WaitReady(t)
	wantRestored(t, other, token, written)
	if node := other.Kubectl(t, "get", "nodes", "-o", "name"); node != "node/two\n" {
		t.Errorf("nodes %q, want two", node)
	}
	// The new machine's own start continues from there.
	other.Kubectl(t, "create", "token", "default", "-n", "keep")
	other.Kubectl(t, "run", "fresh", "--image=localhost/test/busybox:1", "--image-pull-policy=Never", "--", "sleep", "1000000")
	other.Kubectl(t, "wait", "--for=condition=Ready", "pod/fresh", "--timeout="+podTimeout.String())
}

// saveWhileWriting saves a snapshot while ConfigMaps are created, and returns how many existed by
// then.
func saveWhileWriting(t *testing.T, s *cluster.Server, name string) int64 {
	t.Helper()
	client, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var written atomic.Int64
	done := make(chan error)
	go func() {
		for ctx.Err() == nil {
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: writtenName(written.Load())}}
			if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, object, metav1.CreateOptions{}); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
			written.Add(1)
		}
		done <- nil
	}()
	cluster.Wait(t, time.Minute, "some ConfigMaps", func() error {
		if written.Load() < 50 {
			return fmt.Errorf("%d are made", written.Load())
		}
		return nil
	})
	before := written.Load()
	out := s.Host.Run(t, "mote", "datastore", "snapshot", "save", name)
	t.Logf("%s after %d writes, %d writes later", strings.TrimSpace(out), before, written.Load()-before)
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("create ConfigMap: %v", err)
	}
	return before
}

func writtenName(i int64) string { return fmt.Sprintf("written-%06d", i) }

// wantRestored checks that the cluster has the objects of the time of the snapshot, and none of the
// later ones.
func wantRestored(t *testing.T, h *cluster.Host, token string, written int64) {
	t.Helper()
	namespaces := h.Kubectl(t, "get", "namespaces", "-o", "name")
	if !strings.Contains(namespaces, "namespace/keep\n") || strings.Contains(namespaces, "namespace/later\n") {
		t.Errorf("namespaces %q: want keep and not later", namespaces)
	}
	password := h.Kubectl(t, "get", "secret", "password", "-n", "keep", "-o", "go-template={{.data.password | base64decode}}")
	if password != "swordfish" {
		t.Errorf("the Secret holds %q", password)
	}
	made := h.Kubectl(t, "get", "configmaps", "-n", "default", "-o", "name")
	for i := range written {
		if !strings.Contains(made, "/"+writtenName(i)+"\n") {
			t.Errorf("ConfigMap %s is lost: it was acknowledged before the snapshot", writtenName(i))
		}
	}
	wantToken(t, h, token)
	wantContains(t, "the default kubeconfig's user", h.Kubectl(t, "auth", "whoami"), "system:masters")
}

// wantToken asks the apiserver for the identity of a user who has only the token.
func wantToken(t *testing.T, h *cluster.Host, token string) {
	t.Helper()
	who := h.Kubectl(t, "auth", "whoami", "--kubeconfig=/dev/null", "--server=https://127.0.0.1:6443",
		"--certificate-authority=/var/lib/mote/server/tls/server-ca.crt", "--token="+token)
	wantContains(t, "the service account's identity", who, "system:serviceaccount:keep:default")
}

func revisionOf(t *testing.T, h *cluster.Host) int64 {
	t.Helper()
	var status struct{ Revision int64 }
	out := h.Run(t, "mote", "datastore", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.Revision == 0 {
		t.Fatalf("mote datastore status printed %s: %v", out, err)
	}
	return status.Revision
}
