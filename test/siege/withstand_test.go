package siege

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
)

const (
	// calmTime is the time over which the quiet figures are measured.
	calmTime = 30 * time.Second
	// slower is the largest factor by which an attack may raise the 99th percentile of a quiet
	// time. The value of the flag floor is allowed in any case: mote is not responsible for the
	// time that the attackers take on the machine's cores.
	slower = 5
	// moreMemory is the number of bytes that the process may take beyond its usage before the
	// attack.
	moreMemory = 100 << 20
	// returnTime is the time in which the process must give everything back. Of each resource it
	// may keep a little more than before: caches that had not been used, connections that are kept.
	returnTime      = 2 * time.Minute
	leftMemory      = 25 << 20
	leftGoroutines  = 100
	leftDescriptors = 20
	// failedShare is the share of requests to DNS and Ingress that may fail, because they are the
	// targets of attacks.
	failedShare = 0.01
)

// row is the line of an attack in the table.
type row struct {
	assault
	during       measured
	memory, peak int64
	left         footprint
	returned     time.Duration
	pressure     string // the attackers' own counts
}

// calm measures the figures of a quiet time.
func (s *scene) calm(t *testing.T) {
	t.Helper()
	s.measure(t)
	<-time.After(calmTime) // a stretch of time, and not a condition
	s.quiet = s.measure(t)
	for _, kind := range kinds() {
		if l := s.quiet[kind]; l.Failed > 0 || l.Requests == 0 {
			t.Fatalf("%s without any attack: %d of %d requests failed: %v", kind, l.Failed, l.Requests, l.Errors)
		}
		t.Logf("quiet %s: %+v", kind, s.quiet[kind])
	}
}

// withstand runs one attack and compares its figures with those of the quiet time.
func (s *scene) withstand(t *testing.T, a assault, last time.Duration) {
	before, err := s.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.before != nil {
		a.before(t, s)
	}
	s.measure(t)
	peak := s.peak(t)
	s.h.Apply(t, a.manifestOf(last))
	s.waitAttack(t, a, last)
	r := row{assault: a, during: s.measure(t), memory: before.memory, pressure: s.pressure(t, a)}
	r.peak = peak()
	over := time.Now()
	s.h.Kubectl(t, "delete", "pods", "-n", "siege", "-l", "siege=attack", "--force", "--grace-period=0", "--wait=true")
	if a.after != nil {
		a.after(t, s)
	}
	t.Logf("attackers: %s", r.pressure)
	if r.pressure == "" && !a.dies {
		t.Errorf("the attackers reported nothing, so nothing shows that there was an attack")
	}
	s.compare(t, r)
	cluster.Wait(t, returnTime, "memory, goroutines and descriptors to be given back", func() error {
		r.left, err = s.look(t.Context())
		if err != nil {
			return err
		}
		if r.left.memory > before.memory+leftMemory || r.left.goroutines > before.goroutines+leftGoroutines ||
			r.left.descriptors > before.descriptors+leftDescriptors {
			return fmt.Errorf("before %+v, now %+v", before, r.left)
		}
		return nil
	})
	r.returned = time.Since(over)
	t.Logf("memory %d MB, at most %d, %d after %v; goroutines %d, %d; descriptors %d, %d", before.memory>>20, r.peak>>20,
		r.left.memory>>20, r.returned.Round(time.Second), before.goroutines, r.left.goroutines, before.descriptors, r.left.descriptors)
	if !t.Failed() {
		s.rows = append(s.rows, r)
	}
}

// waitAttack returns when the attackers' time is over. A pod that the node kills ends its attack.
func (s *scene) waitAttack(t *testing.T, a assault, last time.Duration) {
	t.Helper()
	if a.manifest != "" {
		<-time.After(last)
		return
	}
	cluster.Wait(t, last+podTimeout, "the attack to end", func() error {
		phases := s.h.Kubectl(t, "get", "pods", "-n", "siege", "-l", "siege=attack", "-o", "jsonpath={.items[*].status.phase}")
		for _, phase := range strings.Fields(phases) {
			if phase != "Succeeded" && phase != "Failed" {
				return fmt.Errorf("the attackers are %s", phases)
			}
		}
		return nil
	})
}

// pressure returns the counts that the attackers printed at their end.
func (s *scene) pressure(t *testing.T, a assault) string {
	t.Helper()
	of := []string{"-l", "siege=attack"}
	if a.manifest != "" {
		of = []string{"registry"} // the others never run
	}
	var counts []string
	for line := range strings.Lines(s.h.Kubectl(t, append([]string{"logs", "-n", "siege", "--tail=20"}, of...)...)) {
		if strings.HasPrefix(line, `{"attack"`) {
			counts = append(counts, strings.TrimSpace(line))
		}
	}
	return strings.Join(counts, " ")
}

func (s *scene) compare(t *testing.T, r row) {
	t.Helper()
	for _, kind := range kinds() {
		l := r.during[kind]
		t.Logf("%s: %+v, quiet p99 %.1f ms", kind, l, s.quiet[kind].P99)
		allowed := 0
		if kind == "dns" || kind == "web" {
			allowed = int(failedShare * float64(l.Requests))
		}
		if l.Requests == 0 || l.Failed > allowed {
			t.Errorf("%s: %d of %d requests failed: %v", kind, l.Failed, l.Requests, l.Errors)
		}
		if limit := max(slower*s.quiet[kind].P99, s.floor); l.P99 > limit {
			t.Errorf("%s: p99 is %.1f ms, %.1f when quiet; want at most %.1f", kind, l.P99, s.quiet[kind].P99, limit)
		}
	}
	if r.peak > r.memory+moreMemory {
		t.Errorf("memory rose from %d to %d MB, want at most %d more", r.memory>>20, r.peak>>20, moreMemory>>20)
	}
}

// write writes the page of a run that was survived.
func (s *scene) write(t *testing.T, page string, last time.Duration) {
	t.Helper()
	var out strings.Builder
	fmt.Fprintf(&out, `# Siege

Attacks from pods of a running cluster, each for %v, one after another against one server. While each runs, a client in
another pod asks the API, the cluster DNS and an Ingress ten times a second, and the administrator asks the API from
the machine five times a second, each time on a new connection. Written by `+"`scripts/test siege`"+` on %s, %s.

p99 in milliseconds; memory is anonymous memory of the process in MB: before, at most, and after the time that it took to
be given back. Allowed are five times the quiet p99, or %.0f ms. Quiet p99: administrator %.1f, API %.1f, DNS %.1f, Ingress %.1f. No request to the API failed.

| attack | admin | API | DNS | Ingress | memory | back after |
|---|---|---|---|---|---|---|
`, last, time.Now().Format(time.DateOnly), strings.Fields(s.h.Run(t, "mote", "version"))[1],
		s.floor, s.quiet["admin"].P99, s.quiet["api"].P99, s.quiet["dns"].P99, s.quiet["web"].P99)
	for _, r := range s.rows {
		fmt.Fprintf(&out, "| %s | %.1f | %.1f | %.1f | %.1f | %d, %d, %d | %d s |\n", r.about, r.during["admin"].P99, r.during["api"].P99,
			r.during["dns"].P99, r.during["web"].P99, r.memory>>20, r.peak>>20, r.left.memory>>20, int(r.returned.Seconds()))
	}
	if err := os.WriteFile(page, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
