package server

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/healthz"
	certutil "k8s.io/client-go/util/cert"
	componentbaseconfig "k8s.io/component-base/config"
	"k8s.io/component-base/metrics/legacyregistry"
	genericcontrollermanager "k8s.io/controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"

	"github.com/mote-k8s/mote/internal/series"
)

// TestFrontShowsOwnMetrics runs upstream's server of the controller manager behind the front.
func TestFrontShowsOwnMetrics(t *testing.T) {
	for _, name := range []string{"node_collector_test_total", "kubelet_test_total"} {
		counter := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: "Of a test."})
		legacyregistry.RawMustRegister(counter)
	}
	cert, key, err := certutil.GenerateSelfSignedCertKey("localhost", nil, nil)
	require.NoError(t, err)
	pair, err := dynamiccertificates.NewStaticCertKeyContent("test", cert, key)
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	serving := &genericserver.SecureServingInfo{Listener: listener, Cert: pair}
	authn := genericserver.AuthenticationInfo{Authenticator: authenticator.RequestFunc(
		func(r *http.Request) (*authenticator.Response, bool, error) {
			name, _, ok := r.BasicAuth()
			return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, ok, nil
		})}
	authz := genericserver.AuthorizationInfo{Authorizer: authorizer.AuthorizerFunc(
		func(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
			if a.GetUser().GetName() == "prometheus" {
				return authorizer.DecisionAllow, "", nil
			}
			return authorizer.DecisionNoOpinion, "", nil
		})}

	front, err := newFront(series.ControllerManager, serving, &authn, &authz)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	stop := front.serve(ctx)
	base := genericcontrollermanager.NewBaseHandler(&componentbaseconfig.DebuggingConfiguration{}, http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "healthy") }))
	healthz.InstallReadyzHandler(base)
	ended, _, err := serving.Serve(genericcontrollermanager.BuildHandlerChain(base, &authz, &authn), time.Second, ctx.Done())
	require.NoError(t, err)
	t.Cleanup(func() { cancel(); stop(); <-ended })

	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	ask := func(path, who string) (int, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+listener.Addr().String()+path, nil)
		require.NoError(t, err)
		if who != "" {
			req.SetBasicAuth(who, "")
		}
		response, err := client.Do(req)
		require.NoError(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		return response.StatusCode, string(body)
	}
	status, body := ask("/metrics", "prometheus")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, "\nnode_collector_test_total 0\n")
	require.Contains(t, body, "\ngo_goroutines ")
	require.NotContains(t, body, "kubelet_test_total")
	status, body = ask("/healthz", "prometheus")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "healthy", body)
	for _, path := range []string{"/metrics", "/metrics/slis", "/healthz", "//metrics"} {
		status, _ = ask(path, "")
		require.Equal(t, http.StatusUnauthorized, status, path)
		status, _ = ask(path, "pod")
		require.Equal(t, http.StatusForbidden, status, path)
	}
}

// TestFrontEndsWithoutUpstream checks that the front ends if upstream fails before it serves.
func TestFrontEndsWithoutUpstream(t *testing.T) {
	cert, key, err := certutil.GenerateSelfSignedCertKey("localhost", nil, nil)
	require.NoError(t, err)
	pair, err := dynamiccertificates.NewStaticCertKeyContent("test", cert, key)
	require.NoError(t, err)
	serving := &genericserver.SecureServingInfo{Cert: pair}
	authn := genericserver.AuthenticationInfo{Authenticator: authenticator.RequestFunc(
		func(*http.Request) (*authenticator.Response, bool, error) { return nil, false, nil })}
	authz := genericserver.AuthorizationInfo{Authorizer: authorizer.AuthorizerFunc(
		func(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
			return authorizer.DecisionNoOpinion, "", nil
		})}
	front, err := newFront(series.Scheduler, serving, &authn, &authz)
	require.NoError(t, err)
	front.serve(t.Context())()
}

// TestHealthChecksOfControllersAreTheirs checks that a health check has the name of its controller.
func TestHealthChecksOfControllersAreTheirs(t *testing.T) {
	for _, name := range app.KnownControllers() {
		require.Equal(t, series.ControllerManager, series.CheckOwner(name), name)
	}
}
