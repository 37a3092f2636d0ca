package ingress

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"
)

// registerMetrics adds the refusals of the ports to the metrics that kube-apiserver shows.
func (p *proxy) registerMetrics() error {
	for name, c := range map[string]struct {
		help  string
		value func() float64
	}{
		"mote_ingress_refused_requests_total": {
			"Requests that were answered 503 because too many were under way, in all or of one source address.",
			func() float64 { return float64(p.gate.Refused()) },
		},
		"mote_ingress_unread_refusals_total": {
			"Connections that were closed because their clients do not read refusals.",
			func() float64 { return float64(p.refusals.Refused()) },
		},
	} {
		counter := prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: c.help}, c.value)
		var registered prometheus.AlreadyRegisteredError
		if err := legacyregistry.Registerer().Register(counter); err != nil && !errors.As(err, &registered) {
			return fmt.Errorf("register %s: %w", name, err)
		}
	}
	gauge := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "mote_ingress_requests_bytes", Help: "Memory that requests under way count with.",
	}, func() float64 { return float64(p.gate.UnderWay()) })
	var registered prometheus.AlreadyRegisteredError
	if err := legacyregistry.Registerer().Register(gauge); err != nil && !errors.As(err, &registered) {
		return fmt.Errorf("register memory of requests: %w", err)
	}
	return nil
}
