package snapshot

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// BenchmarkSave saves stores of several sizes while one writer continues, and reports the longest
// wait of that writer.
func BenchmarkSave(b *testing.B) {
	for _, keys := range []int{1_000, 20_000, 100_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			dir := b.TempDir()
			store, err := bolt.Open(filepath.Join(dir, "datastore", "state.db"), bolt.Options{})
			require.NoError(b, err)
			defer store.Close()
			var writers sync.WaitGroup
			for w := range 16 {
				writers.Go(func() {
					for i := w; i < keys; i += 16 {
						_, err := store.Write(b.Context(), bolt.Write{Key: fmt.Sprintf("/registry/%06d", i), Value: object(i)})
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			writers.Wait()
			alone := writeFor(b, store, time.Second)
			b.ResetTimer()
			var saved Snapshot
			for range b.N {
				stop := make(chan []time.Duration)
				ctx, cancel := context.WithCancel(b.Context())
				go func() { stop <- writeUntil(b, store, ctx.Done()) }()
				saved, err = Folder(filepath.Join(dir, "snapshots")).Save(b.Context(), "", fromPipe(store), Origin{ServerDir: dir + "/none"}, nil)
				require.NoError(b, err)
				cancel()
				beside := <-stop
				b.ReportMetric(float64(slices.Max(beside).Microseconds())/1000, "ms-worst-write")
				b.ReportMetric(float64(percentile(beside, 99).Microseconds())/1000, "ms-p99-write")
			}
			b.ReportMetric(float64(percentile(alone, 99).Microseconds())/1000, "ms-p99-write-alone")
			b.ReportMetric(float64(saved.Size), "bytes")
		})
	}
}

// object returns 2 kB that compress about as well as Kubernetes objects.
func object(i int) []byte {
	b := make([]byte, 0, 2048)
	for len(b) < 2000 {
		b = fmt.Appendf(b, `{"name":"f:%d","value":"%x"},`, len(b), uint64(i*7919+len(b))*0x9E3779B97F4A7C15)
	}
	return b
}

func writeFor(b *testing.B, store *bolt.Store, d time.Duration) []time.Duration {
	done := make(chan struct{})
	timer := time.AfterFunc(d, func() { close(done) })
	defer timer.Stop()
	return writeUntil(b, store, done)
}

func writeUntil(b *testing.B, store *bolt.Store, done <-chan struct{}) (took []time.Duration) {
	for i := 0; ; i++ {
		start := time.Now()
		_, err := store.Write(context.Background(), bolt.Write{Key: fmt.Sprintf("/registry/%06d", i%1000), Value: object(i)})
		if err != nil {
			b.Error(err)
			return took
		}
		took = append(took, time.Since(start))
		select {
		case <-done:
			return took
		default:
		}
	}
}

func percentile(took []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(took))
	return sorted[len(sorted)*p/100]
}
