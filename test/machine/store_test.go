package machine

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mote-k8s/mote/test/cluster"
)

var (
	cutRounds = flag.Int("cut-rounds", 1, "how often TestStorePowerCut cuts the power")
	cutSeed   = flag.Uint64("cut-seed", uint64(time.Now().UnixNano()), "choose the moments as the run that printed this seed")
)

// changesOfRound is more than a writer makes in one round. It is even in rounds of the keys: see
// removes.
const changesOfRound = 1 << 20

// change is the last change of a key; the zero value means that the key does not exist.
type change struct {
	number   int // the number of the change among its writer's changes
	revision int64
}

// acknowledged has the acknowledged changes of all rounds, from the console.
type acknowledged struct {
	keys    map[string]change
	next    [writers]int // number of the change after the last acknowledged one
	highest int64
	seen    map[int64]bool
}

// TestStorePowerCut cuts a machine's power during writes to its datastore, again and again: no
// acknowledged change may be lost, no revision may be given out twice, and the store must be sound.
func TestStorePowerCut(t *testing.T) {
	k, err := findKernel(os.Getenv("MOTE_MACHINE_KERNEL"))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("replay with: -run TestStorePowerCut -cut-seed=%d", *cutSeed)
	rng := rand.New(rand.NewPCG(*cutSeed, 0))
	dir := t.TempDir()
	disk, initrd := filepath.Join(dir, "disk.img"), filepath.Join(dir, "initrd")
	if err := makeDisk(disk, k, cluster.Binary(), "store.rc", func(root string) error {
		return copyFile(filepath.Join(root, "usr/local/bin", writerName), self)
	}); err != nil {
		t.Fatal(err)
	}
	if err := makeInitrd(initrd, k); err != nil {
		t.Fatal(err)
	}

	acks := &acknowledged{keys: map[string]change{}, seen: map[int64]bool{}}
	lockups := 0
	for round := range *cutRounds {
		start := time.Now()
		g := boot(t, k, initrd, disk, megabytes)
		acks.compare(t, g.waitFor(t, readyTimeout, "writer dump"))
		enough := 50 + rng.IntN(400)
		for writer := range writers {
			acks.next[writer] = round * changesOfRound
		}
		before := len(acks.seen)
		out, locked := g.cutDuring(t, fmt.Sprintf("writer write %d", round*changesOfRound), func(out string) bool {
			return strings.Count(out, "\n+ ") >= enough
		})
		if acks.add(t, out); len(acks.seen) == before {
			t.Fatal("the power was cut before anything was acknowledged")
		}
		if locked {
			lockups++
		}
		if lockups > maxLockups {
			t.Fatalf("the kernel locked up in %d of %d rounds", lockups, round+1)
		}
		t.Logf("round %d: power cut after %d acknowledged changes, %v", round, len(acks.seen), time.Since(start).Round(time.Second))
	}
	g := boot(t, k, initrd, disk, megabytes)
	acks.compare(t, g.waitFor(t, readyTimeout, "writer dump"))
	g.run(t, "touch /run/hold; kill $(pidof mote); while pidof mote; do sleep 1; done")
	g.run(t, "mote datastore check")
}

// add parses a writer's output; the last line may be incomplete.
func (a *acknowledged) add(t *testing.T, console string) {
	t.Helper()
	lines := strings.Split(strings.ReplaceAll(console, "\r", ""), "\n")
	before := a.highest
	for _, line := range lines[:len(lines)-1] {
		var writer int
		var key string
		var c change
		if line == "" { // the end of the line before, which came after the command was sent
			continue
		}
		if _, err := fmt.Sscanf(line, "+ %d %d %s %d", &writer, &c.number, &key, &c.revision); err != nil {
			t.Errorf("the writer says %q", line)
			continue
		}
		if c.revision <= before || a.seen[c.revision] {
			t.Errorf("revision %d of %s was given out before", c.revision, key)
		}
		a.seen[c.revision] = true
		a.highest = max(a.highest, c.revision)
		a.next[writer] = c.number + 1
		if removes(c.number) {
			c = change{}
		}
		a.keys[key] = c
	}
}

// compare fails the test unless the store has the acknowledged changes or, for one key of each
// writer, the next change, which was on its way.
func (a *acknowledged) compare(t *testing.T, dumped string) {
	t.Helper()
	held := map[string]change{}
	revision := int64(-1)
	for _, line := range strings.Split(strings.TrimSpace(dumped), "\n") {
		var key, value string
		var c change
		if _, err := fmt.Sscanf(line, "! %d", &revision); err == nil {
			continue
		}
		if _, err := fmt.Sscanf(line, "= %s %d %s", &key, &c.revision, &value); err != nil {
			t.Fatalf("the store's contents have a line %q", line)
		}
		_, number, _ := strings.Cut(value, "/")
		var err error
		if c.number, err = strconv.Atoi(number); err != nil {
			t.Fatalf("%s holds %s, which nobody wrote", key, value)
		}
		held[key] = c
	}
	if revision < a.highest {
		t.Errorf("the store is at revision %d after one of %d was acknowledged", revision, a.highest)
	}
	for writer, next := range a.next {
		for n := range keysOfWriter {
			key := keyOf(writer, n)
			has, want := held[key], a.keys[key]
			made := has.number == next && has.revision > want.revision || has == change{} && removes(next)
			if has != want && !(made && keyOf(writer, next) == key) {
				t.Errorf("%s: acknowledged was %+v, the store has %+v", key, want, has)
			}
			a.keys[key] = has
		}
	}
}
