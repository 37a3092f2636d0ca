package crash

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
	"github.com/mote-k8s/mote/test/features"
	"github.com/mote-k8s/mote/test/images"
)

const (
	// loadTime is the longest time that a server is under load before it is killed.
	loadTime = 3 * time.Second
	// firstStartTime covers a first start from exec to after node Ready on an idle machine.
	firstStartTime = 4 * time.Second
)

const pods = `
apiVersion: v1
kind: Pod
metadata: {name: quiet}
spec:
  containers:
  - {name: one, image: "localhost/test/busybox:1", command: [sleep, "1000000"]}
  - {name: two, image: "localhost/test/busybox:1", command: [sleep, "1000000"]}
`

// TestKillUnderLoad kills a server again and again while clients write, each time at a random
// moment: half of the times under load after node Ready, otherwise anywhere in the start.
func TestKillUnderLoad(t *testing.T) {
	features.Row(t, "A17", "kill -9 under load loses nothing acknowledged and no container")
	random := chance(t)
	busybox, err := images.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	h := cluster.NewHost(t, cluster.HostConfig{Name: "crash"})
	h.Preload(t, busybox)
	s := h.StartServer(t)
	s.WaitReady(t)
	// Without the service account no pod can be created.
	h.WaitKubectl(t, cluster.ReadyTimeout, func(string) bool { return true }, "get", "serviceaccount", "default")
	h.Apply(t, pods)
	h.Kubectl(t, "wait", "--for=condition=Ready", "pod/quiet", "--timeout=120s")
	containers := h.ContainerPIDs(t)
	acknowledged := newRecord()

	for round := range rounds(t, "rounds") {
		under := moment(random, loadTime)
		t.Logf("round %d: kill after %v of load", round, under)
		killUnderLoad(t, s, acknowledged, under, random.Uint64())
		if random.IntN(2) == 0 {
			during := moment(random, firstStartTime)
			t.Logf("round %d: and again %v into the next start", round, during)
			killAfter(h.StartServer(t), during)
		}
		s = h.StartServer(t)
		s.WaitReady(t)
		acknowledged.check(t, s)
		if now := h.ContainerPIDs(t); !maps.Equal(containers, now) {
			t.Errorf("round %d: containers %v before, %v after", round, containers, now)
		}
		if t.Failed() {
			return
		}
	}
	restarts := h.Kubectl(t, "get", "pod", "quiet", "-o", "jsonpath={.status.containerStatuses[*].restartCount}")
	if restarts != "0 0" {
		t.Errorf("containers were started again: %s times", restarts)
	}
}

func killUnderLoad(t *testing.T, s *cluster.Server, acknowledged *record, d time.Duration, seed uint64) {
	t.Helper()
	client, err := s.Client()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		acknowledged.load(ctx, client, seed)
	}()
	killAfter(s, d)
	stop()
	<-done
}

// TestKillDuringFirstStart kills first starts at random moments; the next start must succeed on
// whatever data the killed one has left.
func TestKillDuringFirstStart(t *testing.T) {
	features.Row(t, "A17", "kill -9 during the first start: the next one succeeds")
	random := chance(t)
	for round := range rounds(t, "first-rounds") {
		first, second := moment(random, firstStartTime), moment(random, firstStartTime)
		t.Logf("round %d: kill %v into the first start and %v into the second", round, first, second)
		h := cluster.NewHost(t, cluster.HostConfig{Name: "crash"})
		killAfter(h.StartServer(t), first)
		killAfter(h.StartServer(t), second)
		s := h.StartServer(t)
		s.WaitReady(t)
		h.Kubectl(t, "create", "configmap", "works")
		s.Kill()
		h.Close()
	}
}
