package bolt

import (
	"flag"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

var benchDir = flag.String("bench.dir", "", "folder for the benchmarks' stores, to compare disks")

// BenchmarkWrite measures acknowledged writes of 2 kB by writers that each wait for their answer.
func BenchmarkWrite(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("create/writers=%d", writers), func(b *testing.B) {
			bench(b, writers, func(s *Store, writer, i int, value []byte) error {
				_, err := s.create(b.Context(), fmt.Sprintf("/registry/pods/default/%d-%d", writer, i), value)
				return err
			})
		})
		b.Run(fmt.Sprintf("update/writers=%d", writers), func(b *testing.B) {
			revisions := make([]int64, writers)
			bench(b, writers, func(s *Store, writer, i int, value []byte) (err error) {
				key := fmt.Sprintf("/registry/pods/default/%d", writer)
				revisions[writer], err = s.update(b.Context(), key, value, revisions[writer])
				return err
			})
		})
	}
}

func bench(b *testing.B, writers int, write func(s *Store, writer, i int, value []byte) error) {
	dir := *benchDir
	if dir == "" {
		dir = b.TempDir()
	}
	s := open(b, filepath.Join(dir, fmt.Sprintf("%d-%d.db", writers, b.N)))
	value := make([]byte, 2000)
	var next atomic.Int64
	var group sync.WaitGroup
	b.ResetTimer()
	for w := range writers {
		group.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := write(s, w, int(i), value); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	b.StopTimer()
	require.NoError(b, s.Close())
}

// BenchmarkRead measures reads of a store of 10,000 keys of 500 bytes, all in the file.
func BenchmarkRead(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "state.db"))
	for i := range 10_000 {
		_, err := s.create(b.Context(), fmt.Sprintf("/registry/pods/%05d", i), make([]byte, 500))
		require.NoError(b, err)
	}
	require.NoError(b, s.Checkpoint(b.Context()))
	for name, q := range map[string]Query{
		"get":   {Key: "/registry/pods/05000"},
		"list":  {Key: "/registry/pods/", End: "/registry/pods0", Limit: 500},
		"count": {Key: "/registry/pods/", End: "/registry/pods0", CountOnly: true},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, err := s.Range(b.Context(), q)
				require.NoError(b, err)
			}
		})
	}
}
