package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mote-k8s/mote/internal/disk"
)

func TestDisksAreComparedWithTheKubeletsLimits(t *testing.T) {
	const gib = 1 << 30
	little := disk.Info{Dir: "/d", Size: 100 * gib, Free: 12 * gib, Inodes: 1000, FreeInodes: 49}
	for _, test := range []struct {
		limits string
		disk   disk.Info
		want   []string
	}{
		{"", disk.Info{Size: 100 * gib, Free: 16 * gib, Inodes: 1000, FreeInodes: 51}, nil},
		{"", little, []string{
			"/var/lib/kubelet: /d has 4.9 % inodes free, less than nodefs.inodesFree=5%",
			"/var/lib/mote/agent/containerd: /d has 12.0 % free, less than imagefs.available=15%",
			"/var/lib/mote/agent/containerd: /d has 4.9 % inodes free, less than imagefs.inodesFree=5%",
		}},
		{"", disk.Info{Size: 100 * gib, Free: 16 * gib}, nil}, // btrfs counts no inodes
		{"eviction-hard=nodefs.available<12Gi", little, nil},
		{"eviction-hard=nodefs.available<13Gi", little, []string{"/var/lib/kubelet: /d has 12Gi free, less than nodefs.available=13Gi"}},
		{"evictionHard={imagefs.inodesFree: 4%, nodefs.inodesFree: 40}", little, []string{
			"/var/lib/mote/agent/containerd: /d has 12.0 % free, less than imagefs.available=15%",
		}},
	} {
		c := testConfig("/p")
		if test.limits != "" {
			c.KubeletArgs = []string{test.limits}
		}
		limits, err := evictionLimits(c)
		require.NoError(t, err)
		var got []string
		for _, limit := range limits {
			dir := limitedDir(c, limit.Signal)
			if problem := shortOf(limit, test.disk); dir != "" && problem != "" {
				got = append(got, dir+": "+problem)
			}
		}
		require.ElementsMatch(t, test.want, got, test.limits)
	}
}

func TestKubeletArgumentsAreChecked(t *testing.T) {
	for argument, want := range map[string]string{
		"no-such=1":                            `unknown kubelet argument "no-such"`,
		"evictionHard={nodefs.available: -1%}": "kubelet argument evictionHard: eviction percentage threshold nodefs.available must be >= 0%: -1%",
	} {
		c := testConfig("/p")
		c.KubeletArgs = []string{argument}
		require.Equal(t, []Finding{{"kubelet-args", StateFail, want}}, checkKubelet(c))
	}
}
