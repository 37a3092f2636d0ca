package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/test/cluster"
)

// cisMarker is in a Secret and a ConfigMap. No file may contain it in readable form.
const cisMarker = "hunter2-hunter2-hunter2"

// cisTests returns the checks of controls.yaml that need more than a flag or a file's mode.
func cisTests() map[string]func(t *testing.T, s *cisServer, argument string) {
	return map[string]func(*testing.T, *cisServer, string){
		"anonymous":         cisAnonymous,
		"kubelet-anonymous": cisKubeletAnonymous,
		"external-ips":      cisExternalIPs,
		"event-rate":        cisEventRate,
		"profiles":          cisProfiles,
		"encryption":        cisEncryption,
		"ciphers":           cisCiphers,
		"token-lifetime":    cisTokenLifetime,
		"audit":             cisAudit,
		"pod-pids":          cisPodPIDs,
		"seccomp":           cisSeccomp,
		"proxy-metrics":     cisProxyMetrics,
		"cluster-admin":     cisClusterAdmin,
		"pod-security":      cisPodSecurity,
		"network-policies":  cisNetworkPolicies,
	}
}

func do(t *testing.T, client *http.Client, request *http.Request) (status int, body string) {
	t.Helper()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(data)
}

// status requests a URL without credentials and returns the status code.
func (s *cisServer) status(t *testing.T, url string) int {
	t.Helper()
	stranger := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: s.h.Dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, _ := do(t, stranger, request)
	return status
}

func cisAnonymous(t *testing.T, s *cisServer, _ string) {
	for path, want := range map[string]int{
		"/healthz": 200, "/livez": 200, "/readyz": 200,
		"/version": 401, "/api": 401, "/apis": 401, "/metrics": 401, "/openid/v1/jwks": 401, "/readyz/etcd": 401,
	} {
		if got := s.status(t, "https://127.0.0.1:6443"+path); got != want {
			t.Errorf("%s without credentials: status %d, want %d", path, got, want)
		}
	}
}

func cisKubeletAnonymous(t *testing.T, s *cisServer, _ string) {
	for _, path := range []string{"/pods", "/metrics", "/healthz"} {
		if got := s.status(t, "https://"+nodeIP+":10250"+path); got != http.StatusUnauthorized {
			t.Errorf("the kubelet's %s without credentials: status %d, want 401", path, got)
		}
	}
}

// refused creates an object in a dry run, and requires a refusal that contains why.
func (s *cisServer) refused(t *testing.T, manifest, why string) {
	t.Helper()
	r := s.h.Try(t, strings.NewReader(manifest), "mote", "kubectl", "create", "--dry-run=server", "-f", "-")
	if r.Code == 0 || !strings.Contains(r.Stderr, why) {
		t.Errorf("exit code %d, want it refused with %q: %s%s\n%s", r.Code, why, r.Stdout, r.Stderr, manifest)
	}
}

func cisExternalIPs(t *testing.T, s *cisServer, _ string) {
	s.refused(t, `{apiVersion: v1, kind: Service, metadata: {name: cis}, spec: {ports: [{port: 80}], externalIPs: [192.0.2.1]}}`,
		"external IPs is denied")
}

// cisEventRate sends many events about one object, until one is refused.
func cisEventRate(t *testing.T, s *cisServer, _ string) {
	config, err := s.h.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		_, err := client.CoreV1().Events("default").Create(t.Context(), &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{GenerateName: "cis-"},
			InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "box"},
			Source:         corev1.EventSource{Component: "cis"}, Reason: "Cis", Message: "flood",
		}, metav1.CreateOptions{}) // a dry run is not counted
		switch {
		case apierrors.IsTooManyRequests(err):
			return
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Error("2,000 events at once about one object are taken")
}

// cisProfiles checks that no port serves profiles, not even to the administrator, and that the
// status socket serves them to root.
func cisProfiles(t *testing.T, s *cisServer, _ string) {
	for _, port := range []string{"127.0.0.1:6443", "127.0.0.1:10257", "127.0.0.1:10259", nodeIP + ":10250"} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine?debug=1", "/debug/flags/v"} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+port+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			// The kubelet answers that the method is not allowed.
			if status, body := do(t, s.admin, request); status != http.StatusNotFound && status != http.StatusMethodNotAllowed {
				t.Errorf("%s%s: status %d, want 404 or 405: %.200s", port, path, status, body)
			}
		}
	}
	socket := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.h.Path("/run/mote/sockets/mote.sock"))
		},
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://mote/debug/pprof/heap?debug=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := do(t, socket, request); status != http.StatusOK || !strings.HasPrefix(body, "heap profile") {
		t.Errorf("the status socket's heap profile: status %d: %.200s", status, body)
	}
	s.checkFiles(t, "/run/mote/sockets/mote.sock", "600")
}

func cisEncryption(t *testing.T, s *cisServer, _ string) {
	s.checkFiles(t, "$D/server/encryption.yaml", "600")
	s.h.Kubectl(t, "create", "secret", "generic", "cis-encrypted", "--from-literal=password="+cisMarker)
	cluster.Wait(t, podTimeout, "the Secret to be found encrypted", func() error {
		var raw []byte
		err := filepath.WalkDir(s.h.Path("/var/lib/mote/datastore"), func(path string, d fs.DirEntry, err error) error {
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
		case bytes.Contains(raw, []byte(cisMarker)):
			t.Fatal("the datastore holds the Secret in clear")
		case !bytes.Contains(raw, []byte("k8s:enc:secretbox:v1:")):
			return errors.New("nothing is encrypted with secretbox")
		}
		return nil
	})
}

// cisCiphers tries a TLS handshake with each suite of TLS 1.2 alone, and with older versions.
// mote's certificates are ECDSA; the apiserver has another one for its loopback client, which is
// RSA.
func cisCiphers(t *testing.T, s *cisServer, port string) {
	address := "127.0.0.1:" + port
	if port == "10250" || port == "10251" {
		address = nodeIP + ":" + port
	}
	shake := func(version, suite uint16) error {
		conn, err := s.h.Dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version}
		if version <= tls.VersionTLS12 {
			config.CipherSuites = []uint16{suite}
		}
		return tls.Client(conn, config).HandshakeContext(t.Context())
	}
	strong := map[uint16]bool{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: true, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: true,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: true,
	}
	for _, suite := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if !suite.Insecure && strings.HasPrefix(suite.Name, "TLS_ECDHE_RSA_") && !strings.HasSuffix(suite.Name, "_SHA") {
			continue // strong; whether it works depends on the certificate
		}
		if err := shake(tls.VersionTLS12, suite.ID); suite.SupportedVersions[0] == tls.VersionTLS12 || len(suite.SupportedVersions) > 1 {
			if (err == nil) != strong[suite.ID] {
				t.Errorf("%s takes %s: %t, want %t: %v", address, suite.Name, err == nil, strong[suite.ID], err)
			}
		}
	}
	if err := shake(tls.VersionTLS13, 0); err != nil {
		t.Errorf("%s refuses TLS 1.3: %v", address, err)
	}
	if shake(tls.VersionTLS11, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA) == nil {
		t.Errorf("%s takes TLS 1.1", address)
	}
}

// cisTokenLifetime reads the token that the kubelet has put into the box.
func cisTokenLifetime(t *testing.T, s *cisServer, _ string) {
	token := s.h.Kubectl(t, "exec", "box", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("the token has %d parts", len(parts))
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct{ Exp, Iat int64 }
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	if life := time.Duration(claims.Exp-claims.Iat) * time.Second; life <= 0 || life > 2*time.Hour {
		t.Errorf("a pod's token lives %v, want about an hour", life)
	}
}

// cisPodPIDs reads the box's cgroup from outside: the limit is the pod's, not the container's.
func cisPodPIDs(t *testing.T, s *cisServer, _ string) {
	limit := strings.TrimSpace(s.podGroupFile(t, "box", "pids", "pids.max"))
	var n int
	if _, err := fmt.Sscan(limit, &n); err != nil || n < 100 || n > 4096 {
		t.Errorf("the pod's pids.max is %q, want 100 to 4,096", limit)
	}
}

// podGroupFile reads a file of a pod's cgroup, of v1 or v2.
func (s *cisServer) podGroupFile(t *testing.T, pod, controller, file string) string {
	t.Helper()
	uid := s.h.Kubectl(t, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	for _, root := range []string{"/sys/fs/cgroup/" + controller, "/sys/fs/cgroup"} {
		for _, class := range []string{"", "besteffort", "burstable"} {
			data, err := os.ReadFile(s.h.Path(filepath.Join(root, "mote/kubepods", class, "pod"+uid, file)))
			if err == nil {
				return string(data)
			}
		}
	}
	t.Fatalf("pod %s has no %s", pod, file)
	return ""
}

func cisSeccomp(t *testing.T, s *cisServer, _ string) {
	status := s.h.Kubectl(t, "exec", "box", "--", "cat", "/proc/1/status")
	wantContains(t, "the status of the box's first process", status, "Seccomp:\t2\n") // SECCOMP_MODE_FILTER
}

// cisProxyMetrics checks that kube-proxy serves its metrics only on loopback.
func cisProxyMetrics(t *testing.T, s *cisServer, _ string) {
	if conn, err := s.h.Dial(t.Context(), "tcp", nodeIP+":10249"); err == nil {
		conn.Close()
		t.Error("port 10249 is open on the node's address")
	}
}

func cisClusterAdmin(t *testing.T, s *cisServer, _ string) {
	got := s.h.Kubectl(t, "get", "clusterrolebindings", "-o",
		`jsonpath={range .items[?(@.roleRef.name=="cluster-admin")]}{.metadata.name} {.subjects[*].kind} {.subjects[*].name};{end}`)
	if want := "cluster-admin Group system:masters;"; got != want {
		t.Errorf("bound to cluster-admin: %q, want %q", got, want)
	}
}

// cisPodSecurity creates a pod with one field. It must be refused, and accepted in kube-system,
// where the level does not apply.
func cisPodSecurity(t *testing.T, s *cisServer, field string) {
	spec, container := "", ""
	switch field {
	case "privileged":
		container = "securityContext: {privileged: true}, "
	case "hostPath":
		spec = "volumes: [{name: v, hostPath: {path: /etc}}], "
	case "hostPort":
		container = "ports: [{containerPort: 80, hostPort: 80}], "
	default:
		spec = field + ": true, "
	}
	manifest := fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: cis}, spec: {%scontainers: [{%sname: c, image: c}]}}`, spec, container)
	s.refused(t, manifest, `violates PodSecurity "baseline:latest"`)
	r := s.h.Try(t, strings.NewReader(manifest), "mote", "kubectl", "create", "--dry-run=server", "--namespace=kube-system", "-f", "-")
	if r.Code != 0 {
		t.Errorf("kube-system refuses the pod: %s", r.Stderr)
	}
}

func cisNetworkPolicies(t *testing.T, s *cisServer, _ string) {
	var report struct {
		Components []struct{ Name, State string }
	}
	if err := json.Unmarshal([]byte(s.h.Run(t, "mote", "status", "-o", "json")), &report); err != nil {
		t.Fatal(err)
	}
	for _, c := range report.Components {
		if c.Name == "networkpolicy" && c.State == "ready" {
			return
		}
	}
	t.Errorf("networkpolicy is not ready: %+v", report)
}
