package datastore

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/sql"
)

// figure is one metric.
type figure struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(bolt.Stats) float64
}

// Collector returns the store's figures for a Prometheus registry, while the datastore runs. They
// cost the store nothing between two scrapes. SQLite, PostgreSQL, MySQL and NATS have kine's
// figures; an external etcd has none.
func (d *Datastore) Collector() prometheus.Collector {
	if _, kine := d.engine.(kineEngine); kine {
		return joined(sql.Collectors())
	}
	c := collector{datastore: d}
	add := func(kind prometheus.ValueType, name, help string, value func(bolt.Stats) float64) {
		c.figures = append(c.figures, figure{prometheus.NewDesc("mote_datastore_"+name, help, nil, nil), kind, value})
	}
	counter := func(name, help string, value func(bolt.Stats) float64) {
		add(prometheus.CounterValue, name, help, value)
	}
	gauge := func(name, help string, value func(bolt.Stats) float64) { add(prometheus.GaugeValue, name, help, value) }

	counter("writes_total", "Keys written or removed.", func(s bolt.Stats) float64 { return float64(s.Writes) })
	counter("refusals_total", "Requests refused because the disk was full or the quota exceeded.", func(s bolt.Stats) float64 { return float64(s.Refusals) })
	counter("frames_total", "Transactions written to the log; one sync each.", func(s bolt.Stats) float64 { return float64(s.Frames) })
	counter("sync_seconds_total", "Time spent writing and syncing the log.", func(s bolt.Stats) float64 { return s.Syncing.Seconds() })
	counter("checkpoints_total", "Checkpoints written to the file.", func(s bolt.Stats) float64 { return float64(s.Checkpoints) })
	counter("checkpoint_seconds_total", "Time spent on checkpoints.", func(s bolt.Stats) float64 { return s.Checkpointing.Seconds() })
	gauge("revision", "The last revision given out.", func(s bolt.Stats) float64 { return float64(s.Revision) })
	gauge("compacted_revision", "The revision below which there is no history.", func(s bolt.Stats) float64 { return float64(s.Compacted) })
	gauge("memory_bytes", "What waits in memory for the next checkpoint.", func(s bolt.Stats) float64 { return float64(s.MemoryBytes) })
	gauge("log_bytes", "Size of the log's files.", func(s bolt.Stats) float64 { return float64(s.LogBytes) })
	gauge("file_bytes", "Size of the checkpoint's file, free pages included.", func(s bolt.Stats) float64 { return float64(s.FileBytes) })
	gauge("used_bytes", "What of the file and of memory holds something.", func(s bolt.Stats) float64 { return float64(s.UsedBytes) })
	gauge("quota_bytes", "What used_bytes may be before writes are refused.", func(s bolt.Stats) float64 { return float64(s.QuotaBytes) })
	gauge("watches", "Open watches.", func(s bolt.Stats) float64 { return float64(s.Watches) })
	gauge("watches_behind", "Watches that read history.", func(s bolt.Stats) float64 { return float64(s.Behind) })
	gauge("leases", "Leases that have not ended.", func(s bolt.Stats) float64 { return float64(s.Leases) })
	return c
}

// joined combines several collectors into one.
type joined []prometheus.Collector

// Describe implements prometheus.Collector.
func (j joined) Describe(out chan<- *prometheus.Desc) {
	for _, c := range j {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (j joined) Collect(out chan<- prometheus.Metric) {
	for _, c := range j {
		c.Collect(out)
	}
}

type collector struct {
	datastore *Datastore
	figures   []figure
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range c.figures {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector. A store that is not open has no figures.
func (c collector) Collect(out chan<- prometheus.Metric) {
	store := c.datastore.bolt.Load()
	if store == nil {
		return
	}
	stats, err := store.Stats()
	if err != nil {
		return
	}
	for _, f := range c.figures {
		out <- prometheus.MustNewConstMetric(f.desc, f.kind, f.value(stats))
	}
}
