package e2e

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/images"
	"github.com/mote-k8s/mote/test/servers"
)

// configure writes the host's configuration file, which is the place for a password.
func configure(t *testing.T, h *cluster.Host, lines ...string) {
	t.Helper()
	if err := os.MkdirAll(h.Path("/etc/mote"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.Path("/etc/mote/config.yaml"), []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// testEngine is the smoke test of a cluster with its state in another engine: a Deployment answers,
// and still exists after a restart. It returns the cluster's identity, and leaves the cluster
// stopped.
func testEngine(t *testing.T, h *cluster.Host) (id string) {
	t.Helper()
	h.Preload(t, busybox(t), program(t, images.WebName, "./test/images/web"))
	s := h.StartServer(t)
	s.WaitReady(t)
	startWeb(t, h)
	id = identity(t, h)
	uid := h.Kubectl(t, "get", "deployment", "web", "-o", "jsonpath={.metadata.uid}")
	webAnswers(t, h)
	if code := s.Signal(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	noPassword(t, s)

	s = h.StartServer(t)
	s.WaitReady(t)
	if again := h.Kubectl(t, "get", "deployment", "web", "-o", "jsonpath={.metadata.uid}"); again != uid {
		t.Errorf("after the restart the Deployment is %q, not %q", again, uid)
	}
	h.Kubectl(t, "create", "configmap", "after-restart")
	h.Kubectl(t, "delete", "configmap", "after-restart")
	if code := s.Signal(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	noPassword(t, s)
	return id
}

// webAnswers checks that the Deployment answers through its Service.
func webAnswers(t *testing.T, h *cluster.Host) {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
	cluster.Wait(t, podTimeout, "the Deployment's answer", func() error {
		got, err := get(client, "http://"+nodeIP+":30080")
		if err == nil && got != webPod(t, h)+"\n" {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}

// identity returns the UID by which users identify a cluster.
func identity(t *testing.T, h *cluster.Host) string {
	t.Helper()
	return h.Kubectl(t, "get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
}

// noPassword checks that mote's output does not contain the servers' password.
func noPassword(t *testing.T, s *cluster.Server) {
	t.Helper()
	log, err := os.ReadFile(s.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, servers.Password) || strings.Contains(line, "se%40cret") {
			t.Errorf("the log has the password: %s", line)
		}
	}
}

// TestDatastoreSQLite runs a cluster on SQLite, and moves it to mote's own engine.
func TestDatastoreSQLite(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{})
	configure(t, h, "datastore-endpoint: sqlite")
	want := testEngine(t, h)
	moveTo(t, h, "bolt")
	configure(t, h, "datastore-endpoint: bolt")
	s := h.StartServer(t)
	s.WaitReady(t)
	if is := identity(t, h); is != want {
		t.Errorf("after the move the cluster is %q, not %q", is, want)
	}
	webAnswers(t, h)
}

// moveTo migrates the store of a stopped cluster.
func moveTo(t *testing.T, h *cluster.Host, endpoint string) {
	t.Helper()
	r := h.Try(t, strings.NewReader(endpoint+"\n"), "mote", "datastore", "migrate", "--to", "-")
	if r.Code != 0 {
		t.Fatalf("migrate: %+v", r)
	}
	wantContains(t, "migrate", r.Stdout, " keys of revision ", " are in "+endpoint)
	wantContains(t, "migrate", r.Stderr, "Next: set datastore-endpoint")
	r = h.Try(t, strings.NewReader(endpoint+"\n"), "mote", "datastore", "migrate", "--to", "-")
	if r.Code != 1 || !strings.Contains(r.Stderr, "the target is not empty") {
		t.Errorf("the second migration: %+v", r)
	}
}

// needServers makes a host for a database server. It needs the level "engines", which installs the
// servers.
func needServers(t *testing.T) (*cluster.Host, servers.Place) {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("MOTE_TEST"), ","), "engines") {
		t.Skip("needs MOTE_TEST=e2e,engines and the servers of scripts/test engines")
	}
	h := cluster.NewHost(t, cluster.HostConfig{})
	return h, servers.Place{Dir: h.Dir, Start: h.Start}
}

func TestDatastorePostgres(t *testing.T) {
	h, place := needServers(t)
	_, endpoint := servers.Postgres(t, place)
	configure(t, h, "datastore-endpoint: "+endpoint)
	testEngine(t, h)
}

func TestDatastoreEtcd(t *testing.T) {
	h, place := needServers(t)
	_, endpoint, certs := servers.Etcd(t, place, "")
	configure(t, h, "datastore-endpoint: "+endpoint, "datastore-cafile: "+certs.CA,
		"datastore-certfile: "+certs.Cert, "datastore-keyfile: "+certs.Key)
	testEngine(t, h)
}
