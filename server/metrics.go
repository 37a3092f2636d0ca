package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"

	"google.golang.org/grpc/test/bufconn"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	genericserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/mux"
	genericcontrollermanager "k8s.io/controller-manager/app"

	// Upstream's commands register these metrics, and the packages that mote calls do not: requests
	// of clients, and the version.
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"

	"github.com/mote-k8s/mote/internal/series"
)

// replaceMetrics replaces upstream's pages, which show the metrics of the whole process, with pages
// of a component's own metrics.
func replaceMetrics(paths *mux.PathRecorderMux, c series.Component) {
	for path, page := range series.Endpoints(c) {
		paths.Unregister(path)
		paths.Handle(path, page)
	}
}

// front serves the port of a component in place of upstream's server, which shows the metrics of
// the whole process to everyone who may read the component's own. Upstream's handler answers all
// other requests.
//
// Upstream builds that handler inside its Run and gives it only to its server. So upstream's server
// gets a listener in memory and the front sends it one request: net/http passes the server, and
// with it the handler, to the authenticator in the context of the request (http.ServerContextKey).
// The memory listener has no other use.
type front struct {
	component series.Component
	serving   genericserver.SecureServingInfo // for the component's port
	authn     genericserver.AuthenticationInfo
	authz     *genericserver.AuthorizationInfo
	memory    *bufconn.Listener
	handler   chan http.Handler // upstream's; capacity 1
}

// memoryBuffer is large enough for one TLS handshake.
const memoryBuffer = 16 << 10

// newFront takes the port out of a component's configuration, before upstream runs with it.
func newFront(
	c series.Component, serving *genericserver.SecureServingInfo, authn *genericserver.AuthenticationInfo, authz *genericserver.AuthorizationInfo,
) (*front, error) {
	if serving == nil || serving.Cert == nil || authn.Authenticator == nil || authz.Authorizer == nil {
		return nil, errors.New("its arguments leave it without a port, certificate, authentication or authorization")
	}
	certificate, key := serving.Cert.CurrentCertKeyContent()
	f := &front{
		component: c, serving: *serving, authn: *authn, authz: authz,
		memory: bufconn.Listen(memoryBuffer), handler: make(chan http.Handler, 1),
	}
	// The present content, because a certificate for one use needs no renewal.
	pair, err := dynamiccertificates.NewStaticCertKeyContent(f.memory.Addr().String(), certificate, key)
	if err != nil {
		return nil, fmt.Errorf("read its certificate: %w", err)
	}
	*serving = genericserver.SecureServingInfo{Listener: f.memory, Cert: pair}
	authn.Authenticator = &handlerFinder{Request: f.authn.Authenticator, found: f.handler}
	return f, nil
}

// handlerFinder is an authenticator that finds the handler of the server that calls it, at the
// first request.
type handlerFinder struct {
	authenticator.Request
	found chan<- http.Handler
	once  sync.Once
}

// AuthenticateRequest implements authenticator.Request.
func (h *handlerFinder) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	h.once.Do(func() {
		if server, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok {
			h.found <- server.Handler
		}
	})
	return h.Request.AuthenticateRequest(r)
}

// serve serves the component's port once upstream has made its handler, until stop is called. stop
// waits for the end.
func (f *front) serve(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		handler, err := f.find(ctx)
		if err == nil {
			_, _, err = f.serving.Serve(f.pages(handler), 0, ctx.Done())
		}
		if err != nil && ctx.Err() == nil {
			slog.Error("port is not served", "component", f.component, "address", f.serving.Listener.Addr().String(), "err", err)
		}
	})
	return func() { cancel(); running.Wait() }
}

// find waits for upstream's handler.
func (f *front) find(ctx context.Context) (http.Handler, error) {
	plain, err := f.memory.DialContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for upstream's server: %w", err)
	}
	defer plain.Close()
	stop := context.AfterFunc(ctx, func() { _ = plain.Close() })
	defer stop()
	// The other end is this process.
	conn := tls.Client(plain, &tls.Config{InsecureSkipVerify: true})
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return nil, fmt.Errorf("ask upstream's server: %w", err)
	}
	_, _ = io.Copy(io.Discard, conn) // the handler came with the request; the answer does not matter
	select {
	case handler := <-f.handler:
		return handler, nil
	default:
		return nil, errors.New("upstream's server does not authenticate its requests")
	}
}

// pages returns upstream's pages with the component's own metrics in place of the process's, behind
// the same authentication and authorization.
func (f *front) pages(upstream http.Handler) http.Handler {
	own := map[string]http.Handler{}
	for path, page := range series.Endpoints(f.component) {
		own[path] = genericcontrollermanager.BuildHandlerChain(page, f.authz, &f.authn)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if page, ok := own[r.URL.Path]; ok {
			page.ServeHTTP(w, r)
			return
		}
		upstream.ServeHTTP(w, r)
	})
}
