package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

const (
	// repairTimeout is the time in which a server must replace a damaged certificate: it checks
	// once a minute.
	repairTimeout = 2 * time.Minute
	// mountTimeout is the time in which the kubelet updates files in pods: it checks about once a
	// minute.
	mountTimeout = 3 * time.Minute
	copiedConfig = "/root/copied.kubeconfig"
	tokenFile    = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	tlsDir       = "/var/lib/mote/server/tls/"
)

// TestCertificates checks a cluster's certificates, renews them and replaces its authorities, with
// one pod that runs all the time.
func TestCertificates(t *testing.T) {
	h := cluster.NewHost(t, cluster.HostConfig{Name: "certs"})
	h.Preload(t, busybox(t))
	s := h.StartServer(t)
	s.WaitReady(t)
	h.Kubectl(t, "run", "stays", "--image=localhost/test/busybox:1", "--image-pull-policy=Never", "--", "sleep", "100000")
	h.Kubectl(t, "wait", "--for=condition=Ready", "pod/stays", "--timeout="+podTimeout.String())
	lab := &certsLab{h: h, containers: h.ContainerPIDs(t), first: s, servers: t}

	for _, part := range []struct {
		name string
		test func(*testing.T, *certsLab)
	}{
		{"check", testCertsCheck},
		{"rotate", testCertsRotate},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, lab) })
	}
	t.Run("stopped", func(t *testing.T) { s = testCertsStopped(t, lab, s) })
	t.Run("rotate-ca", func(t *testing.T) { testRotateCA(t, lab, s) })
}

type certsLab struct {
	h          *cluster.Host
	containers map[string]string
	first      *cluster.Server // the server of the lab's start
	servers    testing.TB      // the test that owns the servers, which outlive its subtests
}

// untouched fails the test when a container has been replaced.
func (l *certsLab) untouched(t *testing.T) {
	t.Helper()
	if now := l.h.ContainerPIDs(t); !maps.Equal(now, l.containers) {
		t.Errorf("containers are %v and were %v", now, l.containers)
	}
}

// restart stops the server as a service manager does and starts it again.
func (l *certsLab) restart(t *testing.T, s *cluster.Server) *cluster.Server {
	t.Helper()
	if code := s.Signal(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	return l.start(t)
}

// start starts the server and waits until its kubelet knows the pods of the previous run.
func (l *certsLab) start(t *testing.T) *cluster.Server {
	t.Helper()
	s := l.h.StartServer(l.servers)
	s.WaitReady(t)
	cluster.Wait(t, podTimeout, "the kubelet to know the pod", func() error {
		if r := l.h.Try(t, nil, "mote", "kubectl", "exec", "stays", "--", "true"); r.Code != 0 {
			return errors.New(r.Stderr)
		}
		return nil
	})
	return s
}

// served returns the serial number of the apiserver's certificate.
func (l *certsLab) served(t *testing.T) string {
	t.Helper()
	conn, err := l.h.Dial(t.Context(), "tcp", "127.0.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	session := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if err := session.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return session.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// copyKubeconfig copies the kubeconfig as users do.
func (l *certsLab) copyKubeconfig(t *testing.T) {
	t.Helper()
	l.h.Run(t, "cp", cluster.Kubeconfig, copiedConfig)
}

// whoami requests the user's identity from the apiserver with the copied kubeconfig and further
// arguments.
func (l *certsLab) whoami(t *testing.T, args ...string) cluster.Result {
	t.Helper()
	return l.h.Try(t, nil, append([]string{"mote", "kubectl", "--kubeconfig=" + copiedConfig, "auth", "whoami"}, args...)...)
}

// whoamiByToken does the same with only a token.
func (l *certsLab) whoamiByToken(t *testing.T, token string) cluster.Result {
	t.Helper()
	return l.h.Try(t, nil, "mote", "kubectl", "auth", "whoami", "--kubeconfig=/dev/null", "--server=https://127.0.0.1:6443",
		"--certificate-authority="+tlsDir+"server-ca.crt", "--token="+token)
}

// podToken returns the current token of the pod.
func (l *certsLab) podToken(t *testing.T) string {
	t.Helper()
	return l.h.Kubectl(t, "exec", "stays", "--", "cat", tokenFile)
}

// wantExtensionTrust checks how many client authorities aggregated API servers receive.
func (l *certsLab) wantExtensionTrust(t *testing.T, n int) {
	t.Helper()
	for _, key := range []string{"client-ca-file", "requestheader-client-ca-file"} {
		cluster.Wait(t, podTimeout, fmt.Sprintf("%d authorities in %s of extension-apiserver-authentication", n, key), func() error {
			bundle := l.h.Kubectl(t, "get", "configmap", "-n", "kube-system", "extension-apiserver-authentication", "-o", "jsonpath={.data."+key+"}")
			if got := strings.Count(bundle, "-----BEGIN"); got != n {
				return fmt.Errorf("there are %d", got)
			}
			return nil
		})
	}
}

// waitAuthorities waits until the pod's file of authorities has n.
func (l *certsLab) waitAuthorities(t *testing.T, n int) {
	t.Helper()
	cluster.Wait(t, mountTimeout, fmt.Sprintf("%d authorities in the pod's ca.crt", n), func() error {
		file := l.h.Kubectl(t, "exec", "stays", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
		if got := strings.Count(file, "-----BEGIN"); got != n {
			return fmt.Errorf("it has %d", got)
		}
		return nil
	})
}

func testCertsCheck(t *testing.T, l *certsLab) {
	features.Row(t, "F6", "check names a foreign and expired certificate, a key that does not fit and a missing file; mote makes them again")
	wantContains(t, "certs check", l.h.Run(t, "mote", "certs", "check"), "NAME", "apiserver", "kubelet-client", "admin.kubeconfig", "service-account")

	// Stop the server: it checks once a minute, and would repair the certificate that the command
	// must report.
	if err := syscall.Kill(l.first.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceFunc(func() { _ = syscall.Kill(l.first.PID(), syscall.SIGCONT) })
	defer goOn()
	foreign := foreignCertificate(t, "system:kube-scheduler")
	for path, data := range map[string][]byte{tlsDir + "scheduler.crt": foreign, tlsDir + "localhost.key": nil} {
		if err := os.WriteFile(l.h.Path(path), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.h.Run(t, "rm", tlsDir+"metrics-server.crt")
	r := l.h.Try(t, nil, "mote", "certs", "check", "-o", "json")
	goOn()
	if r.Code != 1 || r.Stderr != "" {
		t.Errorf("check of damage: exit code %d, %q", r.Code, r.Stderr)
	}
	var report struct {
		Certificates []struct {
			Name     string
			Problems []string
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range report.Certificates {
		if len(c.Problems) > 0 {
			got[c.Name] = strings.Join(c.Problems, "; ")
		}
	}
	for name, want := range map[string]string{
		"scheduler": "has expired; key does not fit; is not signed by client-ca", "localhost": "key cannot be read", "metrics-server": "is missing",
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	cluster.Wait(t, repairTimeout, "certificates to be made again", func() error {
		if r := l.h.Try(t, nil, "mote", "certs", "check"); r.Code != 0 {
			return errors.New(r.Stderr)
		}
		return nil
	})
}

// foreignCertificate returns a certificate that is self-signed and has expired.
func foreignCertificate(t *testing.T, user string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: user}, NotAfter: time.Now().Add(-time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func testCertsRotate(t *testing.T, l *certsLab) {
	features.Row(t, "F6", "rotate renews under a running server and pod: no restart, same containers, old and new kubeconfig good")
	l.copyKubeconfig(t)
	before := l.served(t)
	renewed := strings.Fields(l.h.Run(t, "mote", "certs", "rotate", "--new-keys"))
	if len(renewed) != 12 || !slices.Contains(renewed, "kubelet") {
		t.Errorf("renewed %v", renewed)
	}
	cluster.Wait(t, podTimeout, "the API's new certificate", func() error {
		if l.served(t) == before {
			return errors.New("it is the old one")
		}
		return nil
	})
	wantContains(t, "the new kubeconfig's user", l.h.Kubectl(t, "auth", "whoami"), "system:masters")
	wantContains(t, "the old kubeconfig's user", l.whoami(t).Stdout, "system:masters")
	l.h.Kubectl(t, "exec", "stays", "--", "true") // through the kubelet
	l.h.Run(t, "mote", "certs", "check")
	if got := l.h.Run(t, "stat", "-c", "%a", cluster.Kubeconfig); got != "600\n" {
		t.Errorf("the kubeconfig's mode is %s", got)
	}
	l.untouched(t)
}

func testCertsStopped(t *testing.T, l *certsLab, s *cluster.Server) *cluster.Server {
	features.Row(t, "F6", "check and rotate work while mote is stopped")
	if code := s.Signal(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	l.h.Run(t, "mote", "certs", "check")
	if got := l.h.Run(t, "mote", "certs", "rotate", "scheduler", "admin"); got != "admin\nscheduler\n" {
		t.Errorf("renewed %q", got)
	}
	s = l.start(t)
	l.h.Run(t, "mote", "certs", "check")
	l.untouched(t)
	return s
}

func testRotateCA(t *testing.T, l *certsLab, s *cluster.Server) {
	features.Row(t, "F6", "rotate-ca: with both authorities old and new kubeconfigs and tokens are good; after --finish the new alone; same containers")
	l.copyKubeconfig(t)
	token := l.podToken(t)
	if r := l.whoamiByToken(t, token); r.Code != 0 {
		t.Fatalf("the pod's token: %s", r.Stderr)
	}
	want := "server-ca\nclient-ca\nfront-proxy-ca\nservice-account\n"
	if got := l.h.Run(t, "mote", "certs", "rotate-ca"); got != want {
		t.Errorf("rotate-ca: %q", got)
	}
	if r := l.h.Try(t, nil, "mote", "certs", "check"); r.Code != 0 || !strings.Contains(r.Stderr, "waits for the next start") {
		t.Errorf("check while a change waits: %+v", r)
	}
	s = l.restart(t, s)
	l.h.Run(t, "mote", "certs", "check")
	wantContains(t, "the new kubeconfig's user", l.h.Kubectl(t, "auth", "whoami"), "system:masters")
	wantContains(t, "the old kubeconfig's user", l.whoami(t).Stdout, "system:masters")
	if r := l.whoamiByToken(t, token); r.Code != 0 {
		t.Errorf("the pod's token from before: %s", r.Stderr)
	}
	l.wantExtensionTrust(t, 2)
	l.waitAuthorities(t, 2)
	l.h.WaitKubectl(t, podTimeout, func(out string) bool { return strings.Contains(out, "certs") }, "top", "node")

	if got := l.h.Run(t, "mote", "certs", "rotate-ca", "--finish"); got != want {
		t.Errorf("rotate-ca --finish: %q", got)
	}
	l.restart(t, s)
	l.h.Run(t, "mote", "certs", "check")
	wantContains(t, "the new kubeconfig's user", l.h.Kubectl(t, "auth", "whoami"), "system:masters")
	if r := l.whoami(t); r.Code == 0 || !strings.Contains(r.Stderr, "unknown authority") {
		t.Errorf("the old kubeconfig: %+v", r)
	}
	if r := l.whoami(t, "--insecure-skip-tls-verify"); !strings.Contains(r.Stderr, "Unauthorized") {
		t.Errorf("the old client certificate: %+v, want Unauthorized", r)
	}
	if r := l.whoamiByToken(t, token); !strings.Contains(r.Stderr, "Unauthorized") {
		t.Errorf("the old token: %+v, want Unauthorized", r)
	}
	l.wantExtensionTrust(t, 1)
	l.waitAuthorities(t, 1)
	cluster.Wait(t, mountTimeout, "the pod's new token", func() error {
		if r := l.whoamiByToken(t, l.podToken(t)); r.Code != 0 {
			return errors.New(r.Stderr)
		}
		return nil
	})
	l.untouched(t)
}
