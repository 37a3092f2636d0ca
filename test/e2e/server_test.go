package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

// TestServer tests mote's main job: a machine with nothing but loopback gets a whole node. The
// subtests share one server, in order; the last ones stop it and remove it.
func TestServer(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{Name: "e2e"})
	before := h.State(t)
	box, web := busybox(t), program(t, images.WebName, "./test/images/web")
	box.Files = append(box.Files, web.Files...) // /program is its HTTP client
	h.Preload(t, box, web, program(t, images.CSIName, "./test/images/csi"))
	between := startProxy(t, h)
	started := features.Begin(t, "A1", "one command on a machine with only a loopback: the node is Ready and pods serve")
	s := h.StartServer(t, auditCSINodes(t, h)...)
	s.WaitReady(t)
	startWeb(t, h)
	started(true, false)
	t.Run("log", func(t *testing.T) {
		features.Row(t, "G7", "a healthy first start logs no error")
		wantNoErrors(t, s, "a first start")
	})

	for _, part := range []struct {
		name string
		test func(*testing.T, *cluster.Host)
	}{
		{"readyz", testReadyz},
		{"version", testVersion},
		{"metrics", testMetrics},
		{"services", testServices},
		{"host port moves", testHostPortMoves},
		{"pod verbs", testPodVerbs},
		{"attach", testAttach},
		{"port-forward", testPortForward},
		{"secrets", testSecrets},
		{"node authorisation", testNodeAuthorisation},
		{"kubelet refuses strangers", testKubeletRefuses},
		{"idle connections of a pod", testIdleConnections},
		{"own metrics only", testOwnMetrics},
		{"ports", testPorts},
		{"second server", testSecondServer},
		{"inotify", testInotify},
		{"kubeconfig", testKubeconfig},
		{"status", testStatus},
		{"file modes", testFileModes},
		{"hardening", testHardening},
		{"images", testImages},
		{"csi", testCSI},
		{"proxy", between.test}, // after the others, which it checks too
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, h) })
	}
	t.Run("stop and start", func(t *testing.T) { testStop(t, s) })
	t.Run("reset", func(t *testing.T) { testReset(t, h, before) })
}

func testReadyz(t *testing.T, h *cluster.Host) {
	features.Row(t, "A19", "every check of readyz is good")
	for line := range strings.Lines(h.Kubectl(t, "get", "--raw", "/readyz?verbose")) {
		if !strings.HasPrefix(line, "[+]") && !strings.Contains(line, "readyz check passed") {
			t.Errorf("readyz says %q", line)
		}
	}
}

func testVersion(t *testing.T, h *cluster.Host) {
	const want = "v1.36.3+mote"
	wantContains(t, "kubectl version", h.Kubectl(t, "version"), "Client Version: "+want, "Server Version: "+want)
	wantContains(t, "the node's version",
		h.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo.kubeletVersion}"), want)
	wantContains(t, "get nodes", h.Kubectl(t, "get", "nodes"), "control-plane")
}

func testMetrics(t *testing.T, h *cluster.Host) {
	features.Row(t, "G2", "the API server shows its own and the datastore counters")
	wantContains(t, "the apiserver's metrics", h.Kubectl(t, "get", "--raw", "/metrics"),
		"\nmote_datastore_writes_total ", "\napiserver_request_total{")
}

// inotifyInstances is the number that "mote check" and each start require: internal/inotify.
const inotifyInstances = 32

func testInotify(t *testing.T, h *cluster.Host) {
	features.Row(t, "A8", "a server takes as many inotify instances as the check counts")
	pid := strings.TrimSpace(h.Run(t, "cat", "/var/lib/mote/lock"))
	var taken int
	for line := range strings.Lines(h.Run(t, "ls", "-l", "/proc/"+pid+"/fd")) {
		if strings.Contains(line, "anon_inode:inotify") {
			taken++
		}
	}
	t.Logf("%d inotify instances", taken)
	if taken == 0 || taken > inotifyInstances {
		t.Errorf("the server has %d inotify instances, and the check counts %d", taken, inotifyInstances)
	}
}

func testServices(t *testing.T, h *cluster.Host) {
	features.Row(t, "D3", "host, pod and the pod itself reach pod, ClusterIP and NodePort")
	pod := webPod(t, h)
	clusterIP := h.Kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
	podIP := h.Kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.podIP}")
	fromHost := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
	fromPod := func(pod string) func(url string) (string, error) {
		return func(url string) (string, error) {
			r := h.Try(t, nil, "mote", "kubectl", "exec", pod, "--", "/program", "fetch", url)
			if r.Code != 0 {
				return "", errors.New(r.Stderr)
			}
			return r.Stdout, nil
		}
	}
	for from, fetch := range map[string]func(url string) (string, error){
		"host":         func(url string) (string, error) { return get(fromHost, url) },
		"pod":          fromPod("box"),
		"the same pod": fromPod(pod), // its packets turn round at the bridge
	} {
		for what, address := range map[string]string{
			"pod": podIP + ":8080", "ClusterIP": clusterIP, "NodePort": nodeIP + ":30080",
		} {
			t.Run(from+" to "+what, func(t *testing.T) {
				cluster.Wait(t, podTimeout, address, func() error {
					if got, err := fetch("http://" + address); err != nil || got != pod+"\n" {
						return fmt.Errorf("answer %q, want %q: %v", got, pod, err)
					}
					return nil
				})
			})
		}
	}
	if got, err := fromPod("box")("https://10.43.0.1/version"); err != nil || !strings.Contains(got, "v1.36") {
		t.Errorf("a pod gets %q from the kubernetes Service: %v", got, err)
	}
}

func get(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func testPodVerbs(t *testing.T, h *cluster.Host) {
	features.Row(t, "D9", "logs, describe, exec with stdin and exit code, cp of a megabyte both ways")
	wantContains(t, "logs", h.Kubectl(t, "logs", "box"), "box is up")
	// Events arrive with a delay.
	h.WaitKubectl(t, podTimeout, func(out string) bool {
		return strings.Contains(out, "Container started") && strings.Contains(out, "localhost/test/busybox:1")
	}, "describe", "pod", "box")

	if r := h.Try(t, nil, "mote", "kubectl", "exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"); r.Code != 7 ||
		r.Stdout != "out\n" || !strings.Contains(r.Stderr, "err\n") {
		t.Errorf("exec: %+v, want exit code 7, out and err", r)
	}
	if r := h.Try(t, strings.NewReader("hello\n"), "mote", "kubectl", "exec", "-i", "box", "--", "cat"); r.Stdout != "hello\n" {
		t.Errorf("exec with stdin: %+v", r)
	}

	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	if err := os.WriteFile(filepath.Join(h.Dir, "sent"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Kubectl(t, "cp", h.Dir+"/sent", "box:/tmp/file")
	h.Kubectl(t, "cp", "box:/tmp/file", h.Dir+"/received")
	if got, err := os.ReadFile(filepath.Join(h.Dir, "received")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("cp brought back %d bytes, want the same %d: %v", len(got), len(content), err)
	}
}

// testAttach sends input to the box and reads its output. The stream stays open until the answers
// have arrived: output after the end of the client's stdin goes only to the log.
func testAttach(t *testing.T, h *cluster.Host) {
	features.Row(t, "D9", "attach carries both directions")
	attach := exec.Command("mote", "kubectl", "attach", "-i", "box")
	attach.Env = h.Environ()
	stdin, err := attach.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := attach.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(attach); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = attach.Process.Kill()
		_ = attach.Wait()
	}()
	giveUp := time.AfterFunc(podTimeout, func() { _ = attach.Process.Kill() })
	defer giveUp.Stop()
	if _, err := io.WriteString(stdin, "one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for _, want := range []string{"got one", "got two"} {
		if !lines.Scan() || lines.Text() != want {
			t.Errorf("attach prints %q, want %q: %v", lines.Text(), want, lines.Err())
		}
	}
	cluster.Wait(t, podTimeout, "attached input in the log", func() error {
		if log := h.Kubectl(t, "logs", "box"); !strings.Contains(log, "got two") {
			return fmt.Errorf("log is %q", log)
		}
		return nil
	})
}

func testSecrets(t *testing.T, h *cluster.Host) {
	features.Row(t, "C3", "the raw datastore holds Secrets encrypted and nothing of them in clear")
	const value = "correct-horse-battery-staple"
	h.Kubectl(t, "create", "secret", "generic", "hidden", "--from-literal=password="+value)
	h.Kubectl(t, "create", "configmap", "open", "--from-literal=text=plain-"+value)
	var raw []byte
	// Retry: data that moves from one file to the other meanwhile is seen in neither.
	cluster.Wait(t, podTimeout, "what was written to be found", func() error {
		raw = nil
		err := filepath.WalkDir(h.Path("/var/lib/mote/datastore"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			raw = append(raw, content...)
			return err
		})
		switch {
		case err != nil:
			return err
		case !bytes.Contains(raw, []byte("k8s:enc:")):
			return errors.New("the datastore's files hold nothing encrypted")
		case !bytes.Contains(raw, []byte("plain-"+value)):
			return errors.New("the datastore's files do not hold the ConfigMap: this test looks at the wrong place")
		}
		return nil
	})
	if bytes.Contains(bytes.ReplaceAll(raw, []byte("plain-"+value), nil), []byte(value)) {
		t.Error("the datastore's files hold the Secret in clear text")
	}
}

func testNodeAuthorisation(t *testing.T, h *cluster.Host) {
	features.Row(t, "F3", "a node reads the secrets of its own pods only and may not label itself as it likes")
	node := func(args ...string) cluster.Result {
		return h.Try(t, nil, append([]string{"mote", "kubectl",
			"--kubeconfig=/var/lib/mote/agent/credentials/kubelet.kubeconfig"}, args...)...)
	}
	h.Kubectl(t, "create", "secret", "generic", "foreign", "--from-literal=a=b")
	h.Kubectl(t, "create", "secret", "generic", "mounted", "--from-literal=a=b")
	h.Apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: mounter}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: localhost/test/busybox:1
    command: [cat, /secret/a]
    volumeMounts: [{name: s, mountPath: /secret}]
  volumes: [{name: s, secret: {secretName: mounted}}]
`)
	h.Kubectl(t, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/mounter", "--timeout="+podTimeout.String())
	if r := node("get", "secret", "mounted"); r.Code != 0 {
		t.Errorf("the node may not read a secret of its own pod: %s", r.Stderr)
	}
	for _, args := range [][]string{
		{"get", "secret", "foreign"}, {"get", "secrets"}, {"delete", "node", "e2e"},
		{"label", "node", "e2e", "node-restriction.kubernetes.io/x=y"},
	} {
		if r := node(args...); r.Code == 0 || !strings.Contains(r.Stderr, "Forbidden") && !strings.Contains(r.Stderr, "forbidden") {
			t.Errorf("kubectl %v as the node: exit code %d, want it forbidden: %s", args, r.Code, r.Stderr)
		}
	}
}

func testKubeletRefuses(t *testing.T, h *cluster.Host) {
	features.Row(t, "F3", "the kubelet refuses no token, a wrong one, and one without rights")
	token := strings.TrimSpace(h.Kubectl(t, "create", "token", "default"))
	// This checks the kubelet's answers, not its identity: the apiserver verifies that.
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: h.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	for token, want := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusUnauthorized, token: http.StatusForbidden} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+nodeIP+":10250/pods", nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("the kubelet answers %d to token %.6q, want %d", resp.StatusCode, token, want)
		}
	}
}

func testFileModes(t *testing.T, h *cluster.Host) {
	features.Row(t, "A9", "keys and kubeconfigs are readable by root alone")
	for path, want := range map[string]fs.FileMode{
		"/var/lib/mote":                    0o700,
		"/var/lib/mote/kubeconfig":         0o600,
		"/var/lib/mote/datastore/state.db": 0o600,
		"/run/mote":                        0o711,
		"/run/mote/sockets":                0o700,
	} {
		info, err := os.Stat(h.Path(path))
		if err != nil {
			t.Error(err)
			continue
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %s is %o, want %o", path, got, want)
		}
	}
	// Keys, tokens and credentials: only root may read any of them.
	for _, dir := range []string{"/var/lib/mote/server", "/var/lib/mote/agent/credentials"} {
		err := filepath.WalkDir(h.Path(dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".crt") || strings.HasSuffix(path, ".pub") {
				return err
			}
			if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("mode of %s is %v, want nothing for others: %v", d.Name(), info.Mode(), err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}
