package bolt

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// TestRevokeOfManyKeys checks that a lease ends in several frames of the log if its keys do not fit
// into one.
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
	require.NoError(t, rescue.Examine(path))
}

func TestLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		s, err := Open(path, Options{})
		require.NoError(t, err)
		alive := func(key string) bool {
			synctest.Wait()
			n, err := s.count(ctx, key, "")
			require.NoError(t, err)
			return n == 1
		}
		grant := func(id, ttl int64) {
			_, err := s.Grant(ctx, id, ttl)
			require.NoError(t, err)
		}
		put := func(key string, lease int64) {
			_, err := s.Write(ctx, Write{Key: key, Lease: lease})
			require.NoError(t, err)
		}
		grant(1, 10)
		grant(2, 10)
		grant(3, 3600)
		_, err = s.Grant(ctx, 3, 1)
		require.ErrorIs(t, err, ErrLeaseExists)
		put("short", 1)
		put("freed", 1)
		put("moved", 1)
		put("renewed", 2)
		put("long", 3)
		_, err = s.Write(ctx, Write{Key: "none", Lease: 4})
		require.ErrorIs(t, err, ErrLeaseNotFound)
		time.Sleep(5 * time.Second)
		put("freed", 0)
		put("moved", 3)
		_, err = s.Renew(ctx, 2)
		require.NoError(t, err)
		time.Sleep(6 * time.Second)
		require.False(t, alive("short"))
		require.True(t, alive("renewed"))
		time.Sleep(5 * time.Second)
		require.False(t, alive("renewed"))
		require.True(t, alive("freed"))
		require.Equal(t, []int64{3}, s.Leases())

		require.NoError(t, s.Close())
		time.Sleep(1800 * time.Second) // without power
		s, err = Open(path, Options{})
		require.NoError(t, err)
		require.True(t, alive("long"))
		time.Sleep(1800 * time.Second)
		require.False(t, alive("long"), "time without power counts")
		require.False(t, alive("moved"))
		require.True(t, alive("freed"))
		grant(5, 3600)
		put("revoked", 5)
		lease, err := s.Lease(5)
		require.NoError(t, err)
		require.Equal(t, []string{"revoked"}, lease.Keys)
		_, err = s.Revoke(ctx, 5)
		require.NoError(t, err)
		require.False(t, alive("revoked"))
		_, err = s.Revoke(ctx, 5)
		require.ErrorIs(t, err, ErrLeaseNotFound)
		require.NoError(t, s.Check())
		require.NoError(t, s.Close())
	})
}

// TestLeaseAfterClockJump checks a machine without a clock: it must neither lose its keys at once
// because the file is from the future, nor keep them for decades.
func TestLeaseAfterClockJump(t *testing.T) {
	l := newLeases()
	l.restore(1, format.Lease{TTL: 60, Ends: time.Now().Add(20 * 365 * 24 * time.Hour).Unix()})
	ended, next := l.due(time.Now())
	require.Empty(t, ended)
	require.LessOrEqual(t, next, time.Minute)
	l.restore(2, format.Lease{TTL: 60, Ends: 1})
	ended, _ = l.due(time.Now())
	require.Equal(t, []int64{2}, ended)
}
