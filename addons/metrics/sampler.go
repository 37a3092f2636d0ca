package metrics

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/metrics/pkg/apis/metrics"
	"sigs.k8s.io/metrics-server/pkg/scraper"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

const (
	// freshFor is the time for which a sample serves all requests. Kubelets check their containers
	// no more often.
	freshFor = 10 * time.Second
	// settle is the wait between a change of a pod and its sample. Kubelets have checked the pod by
	// then.
	settle = 15 * time.Second
	// idleInterval is the interval between samples without requests and changes. It is the longest
	// time over which the CPU use in an answer is averaged.
	idleInterval = time.Minute
	// sinceStart is the age below which a container's CPU use is its average since its start. So
	// the container has a value at its first sample.
	sinceStart = 20 * time.Second
	// sampleTimeout limits the answer of one kubelet, which takes some milliseconds on an idle
	// machine.
	sampleTimeout = 10 * time.Second
)

// sampler keeps two samples of each kubelet's counters, because CPU use is the difference of two.
// Upstream takes one every 15 s for ever. This sampler takes them on a request, after pods have
// changed, and once a minute, so that the older of the two is never too old.
type sampler struct {
	scraper scraper.Scraper
	store   storage.Storage
	nodes   func() []*corev1.Node // the nodes that should answer

	sampling sync.Mutex // guards last, and the store against two writers
	last     time.Time

	mu   sync.Mutex // guards due
	due  time.Time
	wake chan struct{} // due has changed
}

func newSampler(s scraper.Scraper, nodes func() []*corev1.Node) *sampler {
	return &sampler{
		scraper: s, store: storage.NewStorage(sinceStart), nodes: nodes,
		due: time.Now(), wake: make(chan struct{}, 1),
	}
}

// run takes the samples that no request asks for.
func (s *sampler) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
			s.mu.Lock()
			s.due = time.Now().Add(idleInterval)
			s.mu.Unlock()
			s.sample(ctx)
			if !s.complete() {
				s.within(settle)
			}
		}
		s.mu.Lock()
		timer.Reset(time.Until(s.due))
		s.mu.Unlock()
	}
}

// within causes a sample within d.
func (s *sampler) within(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if due := time.Now().Add(d); due.Before(s.due) {
		s.due = due
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// sample queries the kubelets, unless there is a recent sample.
func (s *sampler) sample(ctx context.Context) {
	s.sampling.Lock()
	defer s.sampling.Unlock()
	if !s.last.IsZero() && time.Since(s.last) < freshFor {
		return
	}
	batch := s.scraper.Scrape(ctx)
	s.last = time.Now()
	s.store.Store(batch)
}

// complete reports whether there are two samples of every node.
func (s *sampler) complete() bool {
	nodes := s.nodes()
	known, err := s.store.GetNodeMetrics(nodes...)
	return err == nil && len(nodes) > 0 && len(known) == len(nodes)
}

// ask takes a sample for callers without a context: the interface passes none.
func (s *sampler) ask() {
	ctx, cancel := context.WithTimeout(context.Background(), sampleTimeout)
	defer cancel()
	s.sample(ctx)
}

// GetPodMetrics implements upstream's api.MetricsGetter.
func (s *sampler) GetPodMetrics(pods ...*metav1.PartialObjectMetadata) ([]metrics.PodMetrics, error) {
	s.ask()
	return s.store.GetPodMetrics(pods...)
}

// GetNodeMetrics implements upstream's api.MetricsGetter.
func (s *sampler) GetNodeMetrics(nodes ...*corev1.Node) ([]metrics.NodeMetrics, error) {
	s.ask()
	return s.store.GetNodeMetrics(nodes...)
}
