// Package series shows the metrics of one component out of a registry that all components of the process share.
//
// Upstream's components register what they measure in one registry for each process. In mote that is one for all of
// them, so an endpoint of one component would show those of the others too: names and UIDs of all pods to whoever
// reaches the port of DNS. Of keeps an endpoint to its own; Handler serves it.
package series

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

const (
	// maxScrapes at once on one endpoint: gathering takes the processor for some tens of milliseconds.
	maxScrapes = 3
	// scrapeTimeout is Prometheus' own default.
	scrapeTimeout = 10 * time.Second
	// fresh is how long what was gathered is shown again. Gathering runs the collectors of all components, and a
	// client may ask without pause.
	fresh = 2 * time.Second
)

// Of returns a gatherer of those families of all whose names begin with one of prefixes, and of those of the process
// itself: "go_", "process_". It gathers at most once in two seconds.
func Of(all prometheus.Gatherer, prefixes ...string) prometheus.Gatherer {
	return &some{all: all, prefixes: append([]string{"go_", "process_"}, prefixes...)}
}

type some struct {
	all      prometheus.Gatherer
	prefixes []string

	mu       sync.Mutex // guards what follows; held while gathering
	at       time.Time  // when it began; zero before the first time
	families []*dto.MetricFamily
	err      error
}

// Gather implements prometheus.Gatherer.
func (s *some) Gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.at.IsZero() && time.Since(s.at) < fresh {
		return s.families, s.err
	}
	s.at = time.Now()
	s.families, s.err = s.all.Gather()
	s.families = slices.DeleteFunc(s.families, func(family *dto.MetricFamily) bool {
		return !slices.ContainsFunc(s.prefixes, func(prefix string) bool { return strings.HasPrefix(family.GetName(), prefix) })
	})
	return s.families, s.err
}

// Handler serves /metrics from a gatherer, to a few clients at once. A collector that fails does not keep the others
// from being shown.
func Handler(gatherer prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout,
	})
}
