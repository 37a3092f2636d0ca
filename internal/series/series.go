// Package series shows the metrics of one component out of a registry that all components of the
// process share.
//
// Upstream's components register their metrics in one registry for each process. In mote all of
// them share that registry, so the endpoint of one component would show the metrics of the others
// too. Prometheus would store every series once for each endpoint, and every client that reaches
// the port of DNS could read the names and UIDs of all pods.
//
// Endpoints returns the pages of a component of Kubernetes; Of and Handler show another registry.
// Owner returns the owner of a family (owner.go). Each series has one owner, except those of the
// process itself ("go_", "process_"), which every endpoint shows. kube-apiserver shows a family
// without an owner, which is logged once.
package series

import (
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/metrics/prometheus/slis"
)

const (
	// maxScrapes limits the scrapes at once on one endpoint: collecting the metrics takes the
	// processor for some tens of milliseconds.
	maxScrapes = 3
	// scrapeTimeout is Prometheus' own default.
	scrapeTimeout = 10 * time.Second
	// fresh is the time for which collected metrics are reused. Collecting runs the collectors of
	// all components, and a client may ask without pause.
	fresh = 2 * time.Second
)

// Endpoints returns the metrics pages of a component of Kubernetes, by path: "/metrics", and
// "/metrics/slis" with its health checks. The caller provides authentication and authorization.
func Endpoints(c Component) map[string]http.Handler {
	return map[string]http.Handler{
		"/metrics":      Handler(Of(legacyregistry.DefaultGatherer, c)),
		"/metrics/slis": Handler(Of(slis.Registry, c)),
	}
}

// Of returns a gatherer of all series that c owns, and of those of the process. It runs the
// collectors at most once in two seconds.
func Of(all prometheus.Gatherer, c Component) prometheus.Gatherer {
	return &some{all: all, component: c, unowned: map[string]bool{}}
}

type some struct {
	all       prometheus.Gatherer
	component Component

	mu        sync.Mutex // guards the fields below; held while collecting
	collected bool       // families and err are fresh
	families  []*dto.MetricFamily
	err       error
	unowned   map[string]bool // families that were logged
}

// Gather implements prometheus.Gatherer.
func (s *some) Gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.collected {
		return s.families, s.err
	}
	all, err := s.all.Gather()
	s.families, s.err, s.collected = nil, err, true
	for _, family := range all {
		if own := only(s.component, family); own != nil {
			s.families = append(s.families, own)
			s.report(own.GetName())
		}
	}
	// The metrics take some megabytes, which need not stay until the next scrape.
	time.AfterFunc(fresh, s.forget)
	return s.families, s.err
}

func (s *some) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.families, s.err, s.collected = nil, nil, false
}

// report logs a family that no component owns, once. The caller holds mu.
func (s *some) report(family string) {
	if _, known := Owner(family); known || everywhere(family) || s.unowned[family] {
		return
	}
	s.unowned[family] = true
	slog.Warn("no component owns these metrics, kube-apiserver shows them", "component", "mote", "family", family)
}

// Handler serves the metrics of a gatherer, to a few clients at once. If a collector fails, the
// metrics of the others are still shown.
func Handler(gatherer prometheus.Gatherer) http.Handler {
	pages := promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Upstream resets the metrics of the whole process on DELETE.
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "metrics can only be read", http.StatusMethodNotAllowed)
			return
		}
		pages.ServeHTTP(w, r)
	})
}
