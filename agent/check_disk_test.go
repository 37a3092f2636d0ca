package agent

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDisksAreComparedWithTheKubeletsLimits(t *testing.T) {
	const gib = 1 << 30
	roomy := disk{size: 100 * gib, free: 12 * gib, inodes: 1000, freeInodes: 49}
	for _, test := range []struct {
		limits string
		disk   disk
		want   []string
	}{
		{"", disk{100 * gib, 16 * gib, 1000, 51}, nil},
		{"", roomy, []string{
			"has 12.0 % of its free, less than imagefs.available=15 %",
			"has 4.9 % of its inodes free, less than imagefs.inodesFree=5 %",
			"has 4.9 % of its inodes free, less than nodefs.inodesFree=5 %",
		}},
		{"", disk{size: 100 * gib, free: 16 * gib}, nil}, // btrfs counts no inodes
		{"eviction-hard=nodefs.available<12Gi", roomy, nil},
		{"eviction-hard=nodefs.available<13Gi", roomy, []string{"has 12.0 % of its free, less than nodefs.available=13Gi"}},
	} {
		c := testConfig("/p")
		if test.limits != "" {
			c.KubeletArgs = []string{test.limits}
		}
		limits, err := evictionLimits(c)
		require.NoError(t, err)
		var got []string
		for _, limit := range limits {
			if limit.Signal == "memory.available" {
				continue
			}
			if problem := shortOf(limit, test.disk); problem != "" {
				got = append(got, problem)
			}
		}
		require.ElementsMatch(t, test.want, got, test.limits)
	}
}
