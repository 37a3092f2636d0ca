package bolt

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestQuota checks that over the quota writes are refused, except deletions, volatile writes and
// compactions, which make room.
func TestQuota(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	o := Options{QuotaBytes: 2 << 20, Volatile: []string{"/volatile/"}, limit: 200_000}
	s, err := Open(path, o)
	require.NoError(t, err)
	put := func(key string) error {
		_, err := s.Write(t.Context(), Write{Key: key, Value: make([]byte, 20_000)})
		return err
	}
	n := 0
	for err == nil {
		err = put(fmt.Sprint("/key/", n))
		n++
		require.Less(t, n, 1000)
	}
	written := n - 1
	require.Greater(t, written, 80)
	require.ErrorIs(t, err, ErrNoSpace)
	require.True(t, s.NoSpace())
	require.ErrorIs(t, put("/key/0"), ErrNoSpace, "nor is a key replaced")
	require.NoError(t, put("/volatile/a"))
	count, err := s.count(t.Context(), "/key/", "/key0")
	require.NoError(t, err)
	require.EqualValues(t, written, count)

	require.NoError(t, s.Close())
	s, err = Open(path, o)
	require.NoError(t, err)
	require.True(t, s.NoSpace(), "a restart makes no room")
	require.ErrorIs(t, put("/new"), ErrNoSpace)

	var last int64
	for i := range written / 2 {
		last, err = s.remove(t.Context(), fmt.Sprint("/key/", i))
		require.NoError(t, err)
	}
	_, err = s.Compact(t.Context(), last)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !s.NoSpace() }, 10*time.Second, time.Millisecond, "compaction makes room by itself")
	require.NoError(t, put("/new"))
	require.NoError(t, s.Check())
	require.NoError(t, s.Close())
}
