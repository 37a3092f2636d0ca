package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
)

// proxyAddress is the address of the proxy on TestServer's host.
const proxyAddress = "127.0.0.1:3128"

// proxy is a proxy that records the requests and forwards none, because there is no network
// outside.
type proxy struct {
	mu    sync.Mutex
	asked []string // "METHOD HOST"
}

// startProxy starts a proxy on the host and sets it in the environment of every later process
// there, as a company's /etc/environment does: with exceptions that do not include the cluster's
// addresses.
func startProxy(t *testing.T, h *cluster.Host) *proxy {
	t.Helper()
	p := &proxy{}
	listener, err := h.Listen("tcp", proxyAddress)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(listener)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	h.Env = append(h.Env,
		"HTTP_PROXY=http://"+proxyAddress, "https_proxy=http://"+proxyAddress, "NO_PROXY=localhost,127.0.0.1")
	return p
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.Host)
	p.mu.Unlock()
	http.Error(w, "the proxy reaches nobody", http.StatusBadGateway)
}

func (p *proxy) requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// test uses the connections that a proxy could break, then pulls an image, and checks the requests
// that reached the proxy.
func (p *proxy) test(t *testing.T, h *cluster.Host) {
	features.Row(t, "A7", "a proxy in the environment sees pulls of images and nothing of the cluster's own traffic: "+
		"logs, exec, port-forward, aggregated APIs, webhooks")
	const registry = "registry.example.test"
	cluster.Wait(t, podTimeout, "the metrics API", func() error {
		if r := h.Try(t, nil, "mote", "kubectl", "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"); r.Code != 0 {
			return fmt.Errorf("%s", r.Stderr)
		}
		return nil
	})
	// The hook's Service answers without TLS, so calls fail; only their destination counts.
	h.Apply(t, `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: proxied}
webhooks:
- name: proxied.example.test
  clientConfig: {service: {name: web, namespace: default, port: 80}}
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [configmaps]}]
  namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: proxied}}
  failurePolicy: Fail
  sideEffects: None
  admissionReviewVersions: [v1]
`)
	h.Kubectl(t, "create", "namespace", "proxied")
	cluster.Wait(t, podTimeout, "the webhook to be asked", func() error {
		r := h.Try(t, nil, "mote", "kubectl", "create", "configmap", "-n", "proxied", "--dry-run=server", "c")
		if !strings.Contains(r.Stderr, "https://web.default.svc:80") {
			return fmt.Errorf("create: %+v", r)
		}
		return nil
	})
	h.Kubectl(t, "delete", "validatingwebhookconfiguration", "proxied")
	// A namespace is removed only when every API answers, the aggregated ones too.
	h.Kubectl(t, "delete", "namespace", "proxied", "--timeout="+podTimeout.String())

	h.Kubectl(t, "run", "pulled", "--image="+registry+"/app:1")
	pull := "CONNECT " + registry + ":443"
	cluster.Wait(t, podTimeout, "the pull to ask the proxy", func() error {
		if asked := p.requests(); !slices.Contains(asked, pull) {
			return fmt.Errorf("it was asked for %v", asked)
		}
		return nil
	})
	h.Kubectl(t, "delete", "pod", "pulled", "--now")
	for _, request := range p.requests() {
		// The others are for images that testImages pulls.
		if !slices.Contains([]string{pull, "CONNECT ghcr.io:443", "CONNECT registry-1.docker.io:443"}, request) {
			t.Errorf("the proxy was asked: %s", request)
		}
	}
}
