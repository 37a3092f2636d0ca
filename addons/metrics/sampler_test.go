package metrics

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/metrics-server/pkg/storage"
)

// kubelet answers for node "a" with one pod. The pod's container runs since started and uses a
// whole core.
type kubelet struct {
	began, started time.Time
	at             []time.Duration // when it was asked
	down           bool
}

func (k *kubelet) Scrape(context.Context) *storage.MetricsBatch {
	now := time.Now()
	k.at = append(k.at, now.Sub(k.began))
	if k.down {
		return &storage.MetricsBatch{}
	}
	point := func(start time.Time) storage.MetricsPoint {
		return storage.MetricsPoint{
			StartTime: start, Timestamp: now, CumulativeCPUUsed: uint64(now.Sub(start)), MemoryUsage: 1 << 20,
		}
	}
	return &storage.MetricsBatch{
		Nodes: map[string]storage.MetricsPoint{"a": point(k.began.Add(-time.Hour))},
		Pods: map[types.NamespacedName]storage.PodMetricsPoint{
			{Namespace: "default", Name: "p"}: {Containers: map[string]storage.MetricsPoint{"c": point(k.started)}},
		},
	}
}

func startSampler(t *testing.T) (*kubelet, *sampler) {
	t.Helper()
	k := &kubelet{began: time.Now(), started: time.Now()}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	s := newSampler(k, func() []*corev1.Node { return []*corev1.Node{node} })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return k, s
}

// pass lets time pass on the clock of a bubble.
func pass(d time.Duration) { time.Sleep(d); synctest.Wait() }

func seconds(list ...int) []time.Duration {
	var out []time.Duration
	for _, n := range list {
		out = append(out, time.Duration(n)*time.Second)
	}
	return out
}

var pod = &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}}

func TestIdleIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := startSampler(t)
		pass(4 * time.Minute)
		require.Equal(t, seconds(0, 15, 75, 135, 195), k.at, "twice at once, then once a minute")
	})
}

func TestWhoAsksGetsWhatIsNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s := startSampler(t)
		pass(50 * time.Second)
		k.at = nil
		for range 30 {
			got, err := s.GetPodMetrics(pod)
			require.NoError(t, err)
			require.Len(t, got, 1)
			require.Equal(t, "1", got[0].Containers[0].Usage.Cpu().String())
			require.WithinDuration(t, time.Now(), got[0].Timestamp.Time, freshFor)
			nodes, err := s.GetNodeMetrics(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
			require.NoError(t, err)
			require.Len(t, nodes, 1)
			pass(time.Second)
		}
		require.Equal(t, seconds(50, 60, 70), k.at, "kubelets are not asked more often than it is of use")
	})
}

func TestNewPodIsKnownWhenFirstAsked(t *testing.T) {
	for age := 15; age <= 60; age++ {
		synctest.Test(t, func(t *testing.T) {
			k, s := startSampler(t)
			pass(2 * time.Minute)
			k.at, k.started = nil, time.Now()
			for range 5 {
				s.within(settle) // as its status changes
			}
			pass(time.Duration(age) * time.Second)
			got, err := s.GetPodMetrics(pod)
			require.NoError(t, err)
			require.Len(t, got, 1, "a pod of %d s", age)
			require.LessOrEqual(t, len(k.at), 3)
		})
	}
}

func TestKubeletThatIsAwayIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, s := startSampler(t)
		k.down = true
		pass(40 * time.Second)
		require.Equal(t, seconds(0, 15, 30), k.at)
		k.down = false
		s.within(0) // its node became Ready
		pass(16 * time.Second)
		require.Equal(t, seconds(0, 15, 30, 40, 55), k.at)
		got, err := s.GetPodMetrics(pod)
		require.NoError(t, err)
		require.Len(t, got, 1)
	})
}
