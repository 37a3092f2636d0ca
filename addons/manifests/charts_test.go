package manifests

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"

	"github.com/mote-k8s/mote/addons/api"
)

// TestPanicOfHelmIsAnError uses charts without a cluster, so Helm's clients cannot be made.
func TestPanicOfHelmIsAnError(t *testing.T) {
	c := &charts{}
	err := c.install(t.Context(), &chart{Chart: "shop", Name: "store", Namespace: "mall"}, false)
	require.ErrorContains(t, err, "release mall/store: Helm panicked")
	require.ErrorContains(t, c.uninstall(t.Context(), "mall/store"), "release mall/store: Helm panicked")
}

// TestChartThatEndsTheProcessIsLeftAlone checks that each try is recorded in the cluster before it
// begins, so that the next process finds it.
func TestChartThatEndsTheProcessIsLeftAlone(t *testing.T) {
	s := newSet("node", "store.chart.yaml")
	restart := func() {
		config := s.parent("node").Object.(*corev1.ConfigMap)
		config.Labels[api.ManagedBy] = api.Mote
		sets, err := loadSets(t.Context(), fake.NewClientset(config), "node")
		require.NoError(t, err)
		s = sets["store.chart.yaml"]
	}
	for range maxTries {
		require.True(t, s.try("1"))
		restart()
	}
	require.False(t, s.try("1"))
	restart()
	require.False(t, s.try("1"))
	require.True(t, s.try("2"), "it has changed")
	s.tries = 0 // the installation returned
	restart()
	require.Zero(t, s.tries)
}

// ledger is an apiserver for one ConfigMap, which never exists before a write. write is called
// before each write.
type ledger struct {
	*Keeper
	work
	tries []string // as they were written
	write func() (status int)
}

func newLedger(t *testing.T) *ledger {
	l := &ledger{write: func() int { return http.StatusOK }}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusNotFound
		if r.Method == http.MethodPatch {
			status = l.write()
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if status != http.StatusOK {
			return
		}
		var config corev1.ConfigMap
		if json.NewDecoder(r.Body).Decode(&config) == nil {
			l.tries = append(l.tries, config.Annotations[annotationTries])
			_ = json.NewEncoder(w).Encode(config) // the client sees which part is missing
		}
	}))
	t.Cleanup(server.Close)
	objs, err := api.NewObjects(&rest.Config{Host: server.URL}, Name)
	require.NoError(t, err)
	l.Keeper = &Keeper{objs: objs, charts: &charts{}} // its installations return, with an error
	l.work = work{file: file{name: "a.chart.yaml", sum: "1", chart: &chart{Name: "store", Namespace: "mall"}}, set: newSet("", "a.chart.yaml")}
	return l
}

// TestTryThatCannotBeWrittenDownDoesNotCount checks that a full disk does not make the addon give
// up on a chart.
func TestTryThatCannotBeWrittenDownDoesNotCount(t *testing.T) {
	l := newLedger(t)
	l.write = func() int { return http.StatusInsufficientStorage }
	for range maxTries + 1 {
		require.ErrorContains(t, l.install(t.Context(), &l.work), "keep ConfigMap")
		require.Zero(t, l.work.set.tries)
	}
}

// TestTriesAreCountedUntilOneComesBack checks an installation that fails and returns. Like a
// successful one, it shows that the chart does not end the process, and it costs no more writes.
func TestTriesAreCountedUntilOneComesBack(t *testing.T) {
	l := newLedger(t)
	for range maxTries + 1 {
		require.ErrorContains(t, l.install(t.Context(), &l.work), "Helm panicked")
	}
	require.Equal(t, []string{"1"}, l.tries)
	l.work.sum = "2"
	require.ErrorContains(t, l.install(t.Context(), &l.work), "Helm panicked")
	require.Equal(t, []string{"1", "1"}, l.tries, "it has changed")
}

// TestStopIsNoTry stops mote while the try is recorded, and while it installs.
func TestStopIsNoTry(t *testing.T) {
	for what, status := range map[string]int{"installs": http.StatusOK, "writes": http.StatusInsufficientStorage} {
		l := newLedger(t)
		ctx, stop := context.WithCancel(t.Context())
		l.write = func() int {
			if ctx.Err() != nil {
				return http.StatusOK
			}
			stop()
			return status
		}
		require.Error(t, l.install(ctx, &l.work), what)
		require.NotEmpty(t, l.tries, what)
		require.Empty(t, l.tries[len(l.tries)-1], what)
	}
}
