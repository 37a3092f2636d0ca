package datastore_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/mote-k8s/mote/datastore"
	"github.com/mote-k8s/mote/datastore/bolt"
	"github.com/mote-k8s/mote/datastore/storetest"
)

const crashChildEnv = "MOTE_TEST_DATASTORE"

var (
	crashRounds = flag.Int("crash.rounds", 15, "kills in TestCrash")
	crashSeed   = flag.Uint64("crash.seed", 0, "seed of TestCrash; 0 takes one from the clock")
)

// serveUntilKilled is the victim process: this test program, started again. The benchmarks stop it
// cleanly.
func serveUntilKilled(dir string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d, err := datastore.New(config(dir))
	if err == nil {
		err = d.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// TestCrash kills a datastore at random moments while writers outside record each acknowledged
// write. Afterwards every acknowledged write must be in the store, revisions must not have gone
// back, and the file must be sound.
func TestCrash(t *testing.T) {
	c := newCrash(t)
	for i := range crashWriters {
		c.writers = append(c.writers, &crashWriter{id: i, keys: map[string]*noted{}})
	}
	acknowledged := 0
	for range *crashRounds {
		acknowledged += c.round()
	}
	t.Logf("%d kills, %d acknowledged writes, last revision %d", *crashRounds, acknowledged, c.revision)
}

// TestCrashHistory checks, across kills too, that clients that share keys see one store that
// executes one request after the other. A request without an answer at the kill may or may not have
// been executed.
func TestCrashHistory(t *testing.T) {
	c := newCrash(t)
	const keys, clients, enough = 4, 6, 1_000_000
	h := storetest.NewHistory(keys)
	for range max(3, *crashRounds/5) {
		child := c.start()
		client := c.client()
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		for id := range clients {
			rng := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
			group.Go(func() { h.Client(ctx, client, id, enough, rng) })
		}
		c.kill(child)
		cancel() // cancel() // otherwise reads retry for ever
		group.Wait()
		require.NoError(t, client.Close())
		h.Settle()
	}
	h.Check(t)
}

func newCrash(t *testing.T) *crash {
	seed := *crashSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test ./datastore -run '^%s$' -crash.seed=%d -crash.rounds=%d", t.Name(), seed, *crashRounds)
	return &crash{T: t, rng: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
}

const (
	crashWriters = 8
	crashKeys    = 6 // per writer
)

type crash struct {
	*testing.T
	rng      *rand.Rand
	dir      string
	writers  []*crashWriter
	revision int64 // the highest that any client has received
}

// round starts the victim, checks it, writes to it and kills it. It returns how many writes were
// acknowledged.
func (c *crash) round() int {
	child := c.start()
	client := c.client()
	c.verify(client)

	ctx, cancel := context.WithCancel(c.Context())
	var group sync.WaitGroup
	for _, w := range c.writers {
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), 0))
		group.Go(func() { w.run(ctx, client, rng) })
	}
	beat := int64(0) // the highest revision of a key that may be lost: no other write may get it
	group.Go(func() {
		for {
			resp, err := client.Put(ctx, datastore.DefaultVolatile()[0]+"node", "alive")
			if err != nil {
				return
			}
			beat = resp.Header.Revision
		}
	})
	c.kill(child)
	cancel()
	group.Wait()
	require.NoError(c, client.Close())
	c.revision = max(c.revision, beat)
	c.checkFile()
	return c.collect()
}

// start starts the victim process.
func (c *crash) start() *exec.Cmd {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashChildEnv+"="+c.dir)
	child.Stderr = os.Stderr
	require.NoError(c, child.Start())
	return child
}

func (c *crash) kill(child *exec.Cmd) {
	time.Sleep(time.Duration(c.rng.IntN(200)) * time.Millisecond) // the kill comes at a random moment
	require.NoError(c, child.Process.Kill())
	_ = child.Wait() // the signal ends it
}

func (c *crash) client() *clientv3.Client {
	// By default the client waits a second after it has found no socket.
	impatient := backoff.Config{BaseDelay: time.Millisecond, Multiplier: 1.5, MaxDelay: 10 * time.Millisecond}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"unix://" + config(c.dir).Socket},
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{Backoff: impatient, MinConnectTimeout: time.Minute})},
		Logger:      zap.NewNop(), // it would log each kill
	})
	require.NoError(c, err)
	return client
}

// verify compares a newly started store with the writes that were acknowledged before.
func (c *crash) verify(client *clientv3.Client) {
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	resp, err := client.Get(ctx, "/crash/", clientv3.WithPrefix())
	require.NoError(c, err)
	require.GreaterOrEqual(c, resp.Header.Revision, c.revision, "revisions went back")
	there := map[string]state{}
	for _, kv := range resp.Kvs {
		there[string(kv.Key)] = state{value: string(kv.Value), mod: kv.ModRevision}
	}
	for _, w := range c.writers {
		for key, n := range w.keys {
			got := there[key]
			require.True(c, got.value == n.sure.value || (n.unsure != nil && got.value == n.unsure.value),
				"%s is %+v, but %+v was acknowledged (in doubt: %+v)", key, got, n.sure, n.unsure)
			n.sure, n.unsure = got, nil
		}
	}
	c.revision = resp.Header.Revision
}

// checkFile checks the file that the kill left behind.
func (c *crash) checkFile() {
	s, err := bolt.Open(config(c.dir).Path, bolt.Options{})
	require.NoError(c, err)
	require.NoError(c, s.Check())
	require.NoError(c, s.Close())
}

func (c *crash) collect() int {
	total := 0
	for _, w := range c.writers {
		c.revision = max(c.revision, w.revision)
		total += w.acknowledged
		w.acknowledged = 0
	}
	return total
}

// state is the value of a key; nil means that the key does not exist.
type state struct {
	value string
	mod   int64
}

// noted is the knowledge of a writer about a key that only it writes.
type noted struct {
	sure   state
	unsure *state // a write that was sent and got no answer
}

type crashWriter struct {
	id, serial   int
	keys         map[string]*noted
	revision     int64
	acknowledged int
}

// run writes until the store has stopped.
func (w *crashWriter) run(ctx context.Context, client *clientv3.Client, rng *rand.Rand) {
	for {
		key := fmt.Sprintf("/crash/%d/%d", w.id, rng.IntN(crashKeys))
		n := w.keys[key]
		if n == nil {
			n = &noted{}
			w.keys[key] = n
		}
		w.serial++
		next := state{value: strconv.Itoa(w.serial) + " " + strings.Repeat("x", rng.IntN(4000))}
		op := clientv3.OpPut(key, next.value)
		if n.sure.value != "" && rng.IntN(4) == 0 {
			next.value = ""
			op = clientv3.OpDelete(key)
		}
		n.unsure = &next
		resp, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", n.sure.mod)).
			Then(op).Else(clientv3.OpGet(key)).Commit()
		if err != nil {
			return
		}
		if !resp.Succeeded {
			panic(fmt.Sprintf("%s: another version than %+v: %v", key, n.sure, resp.Responses))
		}
		next.mod = resp.Header.Revision
		if next.value == "" {
			next.mod = 0
		}
		n.sure, n.unsure = next, nil
		w.revision = resp.Header.Revision
		w.acknowledged++
		if w.id == 0 && w.serial%20 == 0 {
			_, _ = client.Compact(ctx, w.revision-20)
		}
	}
}
