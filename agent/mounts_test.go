package agent

import (
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

func TestMountsOfTheKubeletsDirectory(t *testing.T) {
	const dir = "/var/lib/kubelet"
	for _, test := range []struct {
		name          string
		mounts        string
		shared, bound bool
	}{
		{name: "private root", mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw`},
		{name: "shared root", mounts: `27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw`, shared: true},
		{name: "slave root", mounts: `27 1 254:0 / / rw master:1 - ext4 /dev/vda rw`},
		{
			name: "bound by the kubelet", shared: true, bound: true,
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:0 /var/lib/kubelet /var/lib/kubelet rw shared:1 - ext4 /dev/vda rw`,
		}, {
			name: "a disk of the operator's",
			mounts: `27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
42 27 254:16 / /var/lib/kubelet rw - ext4 /dev/vdb rw`,
		}, {
			name: "bound by the kubelet, on a disk of the operator's", shared: true, bound: true,
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:16 / /var/lib/kubelet rw - ext4 /dev/vdb rw
43 42 254:16 / /var/lib/kubelet rw shared:1 - ext4 /dev/vdb rw`,
		}, {
			name: "another directory, bound by the operator",
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:0 /srv/kubelet /var/lib/kubelet rw - ext4 /dev/vda rw`,
		}, {
			name: "bound by the kubelet, in a subvolume", shared: true, bound: true,
			mounts: `27 1 0:30 /@ / rw - btrfs /dev/vda rw
42 27 0:30 /@/var/lib/kubelet /var/lib/kubelet rw shared:1 - btrfs /dev/vda rw`,
		}, {
			name: "a neighbour is shared",
			mounts: `27 1 254:0 / / rw - ext4 /dev/vda rw
42 27 254:16 / /var/lib/kube rw shared:1 - ext4 /dev/vdb rw`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(test.mounts), nil)
			require.NoError(t, err)
			require.Equal(t, test.shared, onShared(mounts, dir), "shared")
			require.Equal(t, test.bound, boundOnItself(mounts, dir), "bound")
		})
	}
}
