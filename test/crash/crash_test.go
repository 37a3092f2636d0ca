// Package crash kills real mote servers at random moments and proves that the promise holds:
// everything that was acknowledged is there, revisions never went back, and containers were not
// disturbed.
//
// Each run prints its seed and the command that replays it. The moments are counted from the start
// of the process, so a replay on another machine kills at the same moments, not at the same
// instructions.
package crash

import (
	"flag"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
)

func TestMain(m *testing.M) {
	flag.Int("rounds", 8, "how often TestKillUnderLoad kills a server")
	flag.Int("first-rounds", 5, "how many first starts TestKillDuringFirstStart kills")
	flag.Uint64("seed", 0, "replay the moments of the run that printed this seed")
	cluster.Main(m, "crash")
}

// chance returns the run's source of random moments, and prints how to repeat the run.
func chance(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(flag.Lookup("seed").Value.String(), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay: MOTE_TEST=crash go test ./test/crash -run '^%s$' -count=1 -v -args -seed=%d", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func rounds(t *testing.T, name string) int {
	t.Helper()
	n, err := strconv.Atoi(flag.Lookup(name).Value.String())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// moment returns a random time within a limit.
func moment(r *rand.Rand, limit time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(limit)))
}

// killAfter kills the server after d, which is a point in time and not a condition.
func killAfter(s *cluster.Server, d time.Duration) {
	<-time.After(d)
	s.Kill()
}
