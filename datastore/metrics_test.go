package datastore_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mote-k8s/mote/datastore"
)

func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	idle, err := datastore.New(config(dir))
	require.NoError(t, err)
	require.Empty(t, figures(t, idle), "a store that is not open has no figures")

	d, stop := serve(t, dir)
	defer stop()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{d.Endpoint()}})
	require.NoError(t, err)
	defer client.Close()
	created := <-client.Watch(t.Context(), "/other", clientv3.WithCreatedNotify())
	require.True(t, created.Created)
	before := figures(t, d)
	for range 3 {
		_, err := client.Put(t.Context(), "/key", "value")
		require.NoError(t, err)
	}
	after := figures(t, d)
	for name, want := range map[string]float64{"writes_total": 3, "frames_total": 3, "revision": 3, "checkpoints_total": 0} {
		require.InDelta(t, want, after["mote_datastore_"+name]-before["mote_datastore_"+name], 0, name)
	}
	require.InDelta(t, 1, after["mote_datastore_watches"], 0)
	require.Positive(t, after["mote_datastore_sync_seconds_total"])
	require.Positive(t, after["mote_datastore_log_bytes"])
	require.Positive(t, after["mote_datastore_file_bytes"])
}

func figures(t *testing.T, d *datastore.Datastore) map[string]float64 {
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(d.Collector()))
	families, err := registry.Gather()
	require.NoError(t, err)
	out := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		out[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return out
}
