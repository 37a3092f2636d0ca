package siege

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/test/cluster"
)

const (
	// adminPause is the time between two requests of the administrator. A request that takes longer
	// than adminTimeout has failed.
	adminPause   = 200 * time.Millisecond
	adminTimeout = 10 * time.Second
	// samplePeriod is the time between two readings of the process's memory during an attack.
	samplePeriod = 200 * time.Millisecond
)

// latencies are the figures that besieger's guest prints for one kind of request.
type latencies struct {
	Requests, Failed int
	P50, P99         float64 // in milliseconds
	Errors           []string
}

// measured holds the latencies of a stretch of time by kind: api, dns and web are those of a pod,
// admin those of the machine.
type measured map[string]latencies

// kinds returns the keys of measured.
func kinds() []string { return []string{"admin", "api", "dns", "web"} }

// footprint is the resource usage of the process.
type footprint struct {
	memory      int64 // anonymous, bytes
	goroutines  int
	descriptors int
}

// admin reads from the API on the machine's loopback, as kubectl does, each time on a new
// connection.
type admin struct {
	kube   *kubernetes.Clientset
	mu     sync.Mutex
	took   []time.Duration // guarded by mu
	errors []string        // guarded by mu
}

func newAdmin(t *testing.T, server *cluster.Server) *admin {
	t.Helper()
	config, err := server.Host.RestConfig()
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = adminTimeout
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	a := &admin{kube: kube}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.ask(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return a
}

func (a *admin) ask(ctx context.Context) {
	tick := time.NewTicker(adminPause)
	defer tick.Stop()
	for {
		start := time.Now()
		_, err := a.kube.CoreV1().Pods("town").Get(ctx, "hall", metav1.GetOptions{})
		if ctx.Err() != nil {
			return
		}
		a.mu.Lock()
		if err != nil {
			a.errors = append(a.errors, err.Error())
		} else {
			a.took = append(a.took, time.Since(start))
		}
		a.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// reset returns the latencies since the last call.
func (a *admin) reset() latencies {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := latencies{Requests: len(a.took) + len(a.errors), Failed: len(a.errors), Errors: a.errors[:min(3, len(a.errors))]}
	if len(a.took) > 0 {
		slices.Sort(a.took)
		at := func(share float64) float64 {
			return float64(a.took[int(share*float64(len(a.took)-1))].Microseconds()) / 1000
		}
		l.P50, l.P99 = at(0.5), at(0.99)
	}
	a.took, a.errors = nil, nil
	return l
}

// measure returns the latencies since the last call.
func (s *scene) measure(t *testing.T) measured {
	t.Helper()
	m := measured{}
	if err := json.Unmarshal([]byte(s.get(t, s.guestIP+":9000", "/measure")), &m); err != nil {
		t.Fatalf("read the guest's latencies: %v", err)
	}
	m["admin"] = s.admin.reset()
	return m
}

// get reads a page from inside the host.
func (s *scene) get(t *testing.T, address, path string) string {
	t.Helper()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, network, _ string) (net.Conn, error) { return s.h.Dial(ctx, network, address) },
	}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("get %s%s: %s %v: %s", address, path, response.Status, err, body)
	}
	return string(body)
}

func (s *scene) podIP(t *testing.T, namespace, name string) string {
	t.Helper()
	return s.h.Kubectl(t, "get", "pod", "-n", namespace, name, "-o", "jsonpath={.status.podIP}")
}

// memory returns the anonymous memory of the server's process in bytes.
func (s *scene) memory() (int64, error) {
	status, err := os.ReadFile(s.proc("status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kilobytes, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("no RssAnon in %s", s.proc("status"))
}

func (s *scene) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(s.server.PID()), name)
}

// look returns the current resource usage of the process. The number of goroutines comes from the
// API.
func (s *scene) look(ctx context.Context) (footprint, error) {
	var f footprint
	var err error
	if f.memory, err = s.memory(); err != nil {
		return f, err
	}
	open, err := os.ReadDir(s.proc("fd"))
	if err != nil {
		return f, err
	}
	f.descriptors = len(open)
	metrics, err := s.admin.kube.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return f, err
	}
	for line := range strings.Lines(string(metrics)) {
		if rest, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			number, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			f.goroutines = int(number)
			return f, err
		}
	}
	return f, fmt.Errorf("no go_goroutines in /metrics")
}

// peak samples the process's memory until stop is called, which returns the highest value.
func (s *scene) peak(t *testing.T) (stop func() int64) {
	done, result := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		tick := time.NewTicker(samplePeriod)
		defer tick.Stop()
		for {
			if now, err := s.memory(); err == nil {
				most = max(most, now)
			}
			select {
			case <-done:
				result <- most
				return
			case <-tick.C:
			}
		}
	}()
	return func() int64 { close(done); return <-result }
}
