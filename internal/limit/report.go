package limit

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// logInterval is the minimum time between two log lines of one listener.
	logInterval = time.Minute
	// recent is the time for which Trouble shows a refusal.
	recent = 2 * time.Minute
)

// journal counts the refusals of one listener.
type journal struct {
	name, component, address string

	mu         sync.Mutex // guards the fields below
	total      map[Reason]uint64
	since      map[Reason]uint64 // counts since the last log line
	logged     time.Time
	refusedAt  time.Time
	lastReason Reason
	lastSource netip.Addr
	failing    error // error of accept, until it succeeds
}

// refused counts a refused connection of source.
func (j *journal) refused(reason Reason, source netip.Addr) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.count(reason)
	j.refusedAt, j.lastReason, j.lastSource = time.Now(), reason, source
	j.log("connections refused", "reason", reason, "source", source)
}

// failed counts an error of accept.
func (j *journal) failed(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.count(Failed)
	j.failing = err
	j.log("cannot accept connections, trying again", "err", err)
}

// accepting records that accept works.
func (j *journal) accepting() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failing = nil
}

// count counts a refusal. The caller of count and log holds mu.
func (j *journal) count(reason Reason) {
	if j.total == nil {
		j.total, j.since = map[Reason]uint64{}, map[Reason]uint64{}
	}
	j.total[reason]++
	j.since[reason]++
}

func (j *journal) log(message string, args ...any) {
	now := time.Now()
	if !j.logged.IsZero() && now.Sub(j.logged) < logInterval {
		return
	}
	var n uint64
	for _, count := range j.since {
		n += count
	}
	slog.Warn(message, append([]any{"component", j.component, "listener", j.name, "address", j.address, "connections", n}, args...)...)
	j.logged = now
	clear(j.since)
}

// trouble describes the refusals of the last minutes and the present error of accept; "" means
// none.
func (j *journal) trouble(now time.Time) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var parts []string
	if j.failing != nil {
		parts = append(parts, fmt.Sprintf("cannot accept connections: %v", j.failing))
	}
	if !j.refusedAt.IsZero() && now.Sub(j.refusedAt) < recent {
		var counts []string
		for _, reason := range reasons() {
			if n := j.total[reason]; n > 0 {
				counts = append(counts, fmt.Sprintf("%s %d", reason, n))
			}
		}
		parts = append(parts, fmt.Sprintf("connections refused, the last %s ago from %s: %s (since the start: %s)",
			now.Sub(j.refusedAt).Round(time.Second), j.lastSource, j.lastReason, strings.Join(counts, ", ")))
	}
	return strings.Join(parts, "; ")
}

func (j *journal) totals() map[Reason]uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make(map[Reason]uint64, len(j.total))
	for reason, n := range j.total {
		out[reason] = n
	}
	return out
}

// Collector returns the metrics of all listeners that exist at the time of a scrape.
func (b *Budgets) Collector() prometheus.Collector {
	return collector{
		budgets: b,
		open: prometheus.NewDesc("mote_listener_connections",
			"Open connections of a listener by class: own are of this machine.", []string{"listener", "class"}, nil),
		refused: prometheus.NewDesc("mote_listener_refused_total",
			"Connections that a listener refused or ended, by reason.", []string{"listener", "reason"}, nil),
	}
}

type collector struct {
	budgets       *Budgets
	open, refused *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) { out <- c.open; out <- c.refused }

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, l := range c.budgets.all() {
		own, strangers := l.counts()
		for class, n := range map[string]int{"own": own, "stranger": strangers} {
			out <- prometheus.MustNewConstMetric(c.open, prometheus.GaugeValue, float64(n), l.cfg.Name, class)
		}
		totals := l.journal.totals()
		for _, reason := range reasons() {
			out <- prometheus.MustNewConstMetric(c.refused, prometheus.CounterValue, float64(totals[reason]), l.cfg.Name, string(reason))
		}
	}
}
