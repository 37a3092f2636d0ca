package storetest

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// seedVariable names an environment variable that repeats the requests of random clients. Their
// timing depends on the scheduler.
const seedVariable = "MOTE_TEST_SEED"

// testLinearizable checks that clients that share keys and connections see one store that executes
// one request after the other.
func testLinearizable(t *testing.T, s *store) { randomClients(t, s).Check(t) }

// testLinearizableChanges checks that of several clients that change one version of a key, exactly
// one succeeds.
func testLinearizableChanges(t *testing.T, s *store) { randomClients(t, s).CheckChanges(t) }

func randomClients(t *testing.T, s *store) *History {
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv(seedVariable); given != "" {
		var err error
		seed, err = strconv.ParseUint(given, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("replay with: %s=%d go test -run '%s'", seedVariable, seed, t.Name())
	const keys, clients, requests = 3, 8, 60
	h := NewHistory(keys)
	another, err := clientv3.New(clientv3.Config{Endpoints: s.client.Endpoints(), DialTimeout: timeout})
	require.NoError(t, err)
	defer another.Close()
	var group sync.WaitGroup
	for id := range clients {
		client := s.client
		if id%2 == 1 {
			client = another
		}
		group.Go(func() { h.Client(s.ctx, client, id, requests, rand.New(rand.NewPCG(seed, uint64(id)))) })
	}
	group.Wait()
	return h
}
