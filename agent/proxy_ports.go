package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"github.com/spf13/pflag"
	utilflag "k8s.io/kubernetes/pkg/util/flag"

	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/internal/series"
)

// proxyPorts are the addresses of kube-proxy's health and metrics. "" means that the arguments
// switch a port off.
//
// mote serves both itself, for two reasons. Upstream's listener has no limits and stops for ever at
// the first error of accept, such as a shortage of descriptors (k8s.io/utils/net/multi_listen.go).
// And its metrics port shows the metrics and the configuration of all components to every client.
// Upstream serves health on a random loopback port, and mote passes it on from there. The metrics
// come from the registry.
type proxyPorts struct {
	healthz, metrics string
}

// proxyBudget returns the budget for load balancers' health checks and for programs that read
// metrics.
func proxyBudget(name string) limit.Config {
	return limit.Config{Component: "kube-proxy", Name: name, Connections: 256, PerAddress: 32, Own: 128, Start: startTimeout}
}

// upstreamPorts are the same two addresses in kube-proxy's configuration.
type upstreamPorts struct {
	set              *pflag.FlagSet
	healthz, metrics *string
}

// newUpstreamPorts must read the flags before they are set: a flag that is set to "" loses the
// pointer to its field.
func newUpstreamPorts(set *pflag.FlagSet) (upstreamPorts, error) {
	u := upstreamPorts{set: set}
	for name, field := range map[string]**string{"healthz-bind-address": &u.healthz, "metrics-bind-address": &u.metrics} {
		value, ok := set.Lookup(name).Value.(*utilflag.IPPortVar)
		if !ok {
			return u, fmt.Errorf("kube-proxy argument %s: unexpected type %T", name, set.Lookup(name).Value)
		}
		*field = value.Val
	}
	return u, nil
}

// move returns the ports that the arguments asked for. It makes upstream serve health on the
// address healthz and serve no metrics.
func (u upstreamPorts) move(healthz string) (proxyPorts, error) {
	asked := proxyPorts{
		healthz: u.set.Lookup("healthz-bind-address").Value.String(), metrics: u.set.Lookup("metrics-bind-address").Value.String(),
	}
	if asked.healthz == "" {
		return asked, errors.New("unsupported kube-proxy argument healthz-bind-address: mote asks there whether the rules are written")
	}
	*u.healthz, *u.metrics = healthz, ""
	return asked, nil
}

// freeLoopbackPort returns a loopback address with a free port.
func freeLoopbackPort() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port for kube-proxy's health: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}

// proxyServers serve the addresses of proxyPorts.
type proxyServers struct {
	servers []*http.Server
	failed  chan error
	running sync.WaitGroup
}

// open listens on both ports and serves them until close. It passes health on from the address
// healthz.
func (p proxyPorts) open(ctx context.Context, budgets *limit.Budgets, mode, healthz string) (*proxyServers, error) {
	s := &proxyServers{failed: make(chan error, 2)}
	health := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: healthz})
	health.Transport = &http.Transport{Proxy: nil, MaxConnsPerHost: 16, ResponseHeaderTimeout: headerTimeout}
	health.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { // kube-proxy does not serve yet
		http.Error(w, "kube-proxy's health is not served yet", http.StatusServiceUnavailable)
	}
	if err := s.serve(ctx, budgets, p.healthz, "kube-proxy-health", health); err != nil {
		return nil, err
	}
	if err := s.serve(ctx, budgets, p.metrics, "kube-proxy-metrics", metricsHandler(mode)); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func metricsHandler(mode string) http.Handler {
	mux := http.NewServeMux()
	for path, page := range series.Endpoints(series.KubeProxy) {
		mux.Handle(path, page)
	}
	for path, text := range map[string]string{"/proxyMode": mode, "/healthz": "ok"} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = io.WriteString(w, text)
		})
	}
	return mux
}

func (s *proxyServers) serve(ctx context.Context, budgets *limit.Budgets, address, name string, handler http.Handler) error {
	if address == "" {
		return nil
	}
	listener, err := budgets.Listen(ctx, address, proxyBudget(name))
	if err != nil {
		return cannotListen(address, "kube-proxy", err)
	}
	server := &http.Server{
		Handler: handler, ReadTimeout: headerTimeout, WriteTimeout: time.Minute, IdleTimeout: idleTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	s.servers = append(s.servers, server)
	s.running.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("serve %s: %w", address, err)
		}
	})
	return nil
}

func (s *proxyServers) close() {
	for _, server := range s.servers {
		_ = server.Close()
	}
	s.running.Wait()
}
