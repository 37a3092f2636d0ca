package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mote-k8s/mote/internal/limit"
	"github.com/mote-k8s/mote/internal/series"
)

const (
	// pageTimeout limits a request with its answer, and the time between two requests on a
	// connection. The value is upstream's.
	pageTimeout = 5 * time.Second
	// maxPageHeader limits the header of a request, in bytes.
	maxPageHeader = 4 << 10
	// maxPageConnections is the limit for each listening address, and maxPageConnectionsPerSource
	// for each source.
	maxPageConnections, maxPageConnectionsPerSource = 64, 16
)

// page is an address where CoreDNS' metrics are served. The series of the other components of this
// process are not shown there, because they are not public.
type page struct {
	server   *http.Server
	listener net.Listener
	ended    chan struct{}
}

func openPage(ctx context.Context, address string, budgets *limit.Budgets) (*page, error) {
	listener, err := budgets.Listen(ctx, address, limit.Config{
		Component: Name, Name: "dns-metrics", Connections: maxPageConnections, PerAddress: maxPageConnectionsPerSource,
		Own: maxPageConnections, Start: pageTimeout, Unacknowledged: pageTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", series.Handler(series.Of(prometheus.DefaultGatherer, series.CoreDNS)))
	p := &page{listener: listener, ended: make(chan struct{}), server: &http.Server{
		Handler: mux, ReadTimeout: pageTimeout, WriteTimeout: pageTimeout, IdleTimeout: pageTimeout,
		MaxHeaderBytes: maxPageHeader, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(p.ended)
		if err := p.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("metrics are not served any more", "component", Name, "address", address, "err", err)
		}
	}()
	return p, nil
}

func (p *page) close() {
	_ = p.server.Close()
	<-p.ended
}

// setupPrometheus sets up the prometheus plugin with a page of mote. Upstream's setup would open a
// port that shows the series of the whole process.
func (s *Server) setupPrometheus(c *caddy.Controller) error {
	m := metrics.New("localhost:9153") // upstream's default
	for c.Next() {
		for _, zone := range plugin.OriginsFromArgsOrServerBlock(nil, c.ServerBlockKeys) {
			m.AddZone(zone)
		}
		switch args := c.RemainingArgs(); {
		case len(args) > 1:
			return plugin.Error("prometheus", c.ArgErr())
		case len(args) == 1:
			m.Addr = args[0]
		}
		for c.NextBlock() {
			if c.Val() == "runtime_metrics" {
				continue // would change the go_ series of all components
			}
			return plugin.Error("prometheus", c.Errf("option %s does not exist in mote", c.Val()))
		}
	}
	host, port, err := net.SplitHostPort(m.Addr)
	if err != nil {
		return plugin.Error("prometheus", err)
	}
	if host == "" {
		m.Addr = net.JoinHostPort(s.cfg.Address.String(), port) // in a pod it would be the pod's address
	}
	s.front.showAt(m.Addr)
	config := dnsserver.GetConfig(c)
	c.OnStartup(func() error {
		for _, host := range config.ListenHosts {
			for _, p := range config.Handlers() {
				vars.PluginEnabled.WithLabelValues(config.Transport+"://"+net.JoinHostPort(host, config.Port), config.Zone, config.ViewName, p.Name()).Set(1)
			}
		}
		return nil
	})
	c.OnRestart(func() error { vars.PluginEnabled.Reset(); return nil })
	config.AddPlugin(func(next plugin.Handler) plugin.Handler {
		m.Next = next
		return m
	})
	return nil
}

// registerMetrics adds the series that upstream's setup would add: the version and the refused
// queries.
func (f *front) registerMetrics() error {
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: plugin.Namespace, Name: "build_info",
		Help: "A metric with a constant '1' value labeled by version, revision, and goversion from which CoreDNS was built.",
	}, []string{"version", "revision", "goversion"})
	var registered prometheus.AlreadyRegisteredError
	switch err := prometheus.Register(info); {
	case errors.As(err, &registered): // the plugin's own, which it does not export
		info = registered.ExistingCollector.(*prometheus.GaugeVec)
	case err != nil:
		return fmt.Errorf("register CoreDNS' version: %w", err)
	}
	info.WithLabelValues(coremain.CoreVersion, coremain.GitCommit, runtime.Version()).Set(1)
	refused := prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: plugin.Namespace, Subsystem: "mote", Name: "refused_queries_total",
		Help: "Queries that were not answered because too many were under way, in all or of one source address.",
	}, func() float64 { return float64(f.gate.Refused()) })
	if err := prometheus.Register(refused); err != nil && !errors.As(err, &registered) {
		return fmt.Errorf("register refused queries: %w", err)
	}
	return nil
}
