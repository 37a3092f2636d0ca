package storetest

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Bench measures acknowledged writes of 2 kB through the socket, by clients that each wait for
// their answer. dir is the directory of the stores: its disk is measured.
func Bench(b *testing.B, dir string, open Open) {
	for _, clients := range []int{1, 16} {
		for _, kind := range []string{"create", "update"} {
			b.Run(fmt.Sprintf("%s/clients=%d", kind, clients), func(b *testing.B) {
				endpoint, stop := open(b, fmt.Sprintf("%s/%s-%d-%d", dir, kind, clients, b.N))
				defer stop()
				client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: timeout})
				require.NoError(b, err)
				defer client.Close()
				_, err = client.Get(b.Context(), "connected")
				require.NoError(b, err)
				benchWrite(b, client, clients, kind == "update")
			})
		}
	}
}

// benchWrite lets each client write new keys, or update one key of its own again and again.
func benchWrite(b *testing.B, client *clientv3.Client, clients int, update bool) {
	value := strings.Repeat("x", 2000)
	var next atomic.Int64
	var group sync.WaitGroup
	b.ResetTimer()
	for c := range clients {
		group.Go(func() {
			key, guard := fmt.Sprintf("/registry/pods/default/%d", c), int64(0)
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if !update {
					key, guard = fmt.Sprintf("/registry/pods/default/%d-%d", c, i), 0
				}
				resp, err := client.Txn(b.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", guard)).
					Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
				if err != nil || !resp.Succeeded {
					b.Error("refused", key, err)
					return
				}
				guard = resp.Header.Revision
			}
		})
	}
	group.Wait()
	b.StopTimer()
}
