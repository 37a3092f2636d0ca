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
	// freshFor is how long a sample serves all who ask: kubelets look at their containers no more often.
	freshFor = 10 * time.Second
	// settle is how long after a pod has changed it is sampled: kubelets have looked at it by then.
	settle = 15 * time.Second
	// idleInterval is between samples when nobody asks and nothing changes. It is the longest time that
	// the CPU use in an answer is the average of.
	idleInterval = time.Minute
	// sinceStart is the age below which a container's CPU use is its average since it started, so that it
	// has one with its first sample.
	sinceStart = 20 * time.Second
	// sampleTimeout is for one kubelet's answer, some milliseconds on an idle machine.
	sampleTimeout = 10 * time.Second
)

// sampler keeps two samples of each kubelet's counters, as CPU use is the difference of two. Upstream
// takes one each 15 s for ever. This one takes them when somebody asks, when pods have changed, and once a
// minute so that the older of the two is never too old.
type sampler struct {
	scraper scraper.Scraper
	store   storage.Storage
	nodes   func() []*corev1.Node // those that should answer

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

// run takes the samples that nobody asked for.
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

// within has a sample taken in d at the latest.
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

// sample asks the kubelets, unless somebody just did.
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

// complete says whether there are two samples of every node.
func (s *sampler) complete() bool {
	nodes := s.nodes()
	known, err := s.store.GetNodeMetrics(nodes...)
	return err == nil && len(nodes) > 0 && len(known) == len(nodes)
}

// ask is for who has no context to ask with: the interface knows none.
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
