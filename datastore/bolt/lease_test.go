package bolt

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRevokeOfManyKeys: a lease whose keys do not fit into one frame of the log ends in several.
func TestRevokeOfManyKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(path, Options{})
	require.NoError(t, err)
	lease, err := s.Grant(t.Context(), 0, 1_000_000)
	require.NoError(t, err)
	const keys, length = 700, 30_000
	_, err = s.submit(t.Context(), func(tx *writeTx) (answer, error) {
		for i := range keys {
			if _, err := tx.write(Write{Key: fmt.Sprintf("/%04d%s", i, strings.Repeat("k", length)), Lease: lease.ID}); err != nil {
				return answer{}, err
			}
		}
		return tx.refuse(nil), nil
	})
	require.NoError(t, err)
	before, err := s.Stats()
	require.NoError(t, err)
	_, err = s.Revoke(t.Context(), lease.ID)
	require.NoError(t, err)
	after, err := s.Stats()
	require.NoError(t, err)
	require.EqualValues(t, 2, after.Frames-before.Frames)
	n, err := s.count(t.Context(), "/", "0")
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = s.Revoke(t.Context(), lease.ID)
	require.ErrorIs(t, err, ErrLeaseNotFound)
	_, err = s.Write(t.Context(), Write{Key: "/large", Value: make([]byte, maxValueSize+1)})
	require.ErrorIs(t, err, ErrTooLarge)
	require.NoError(t, s.Check())
	require.NoError(t, s.Close())
	require.NoError(t, Examine(path))
}
