package agent

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// readMounts lists all mounts, a parent before what is mounted on it.
func readMounts() ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return mounts, nil
}

// unmountBelow unmounts everything mounted below dir and fails when something remains: the caller is
// about to delete files there.
func unmountBelow(dir string) error {
	mounted, err := mountsBelow(dir)
	if err != nil || len(mounted) == 0 {
		return err
	}
	// Latest first: what is mounted on top goes before what is under it.
	for _, point := range slices.Backward(mounted) {
		if err := mount.UnmountAll(point, unix.UMOUNT_NOFOLLOW); err != nil {
			// Something still uses it; detached, it goes with its last user.
			if err := mount.UnmountAll(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", point, err)
			}
		}
	}
	mounted, err = mountsBelow(dir)
	if err == nil && len(mounted) > 0 {
		err = fmt.Errorf("%s is still mounted", mounted[0])
	}
	return err
}

// mountsBelow lists mount points strictly below dir, in the order in which they were mounted. dir itself
// may be the operator's own mount (a disk for /var/lib/kubelet).
func mountsBelow(dir string) ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Mountpoint, dir+"/") {
			found = append(found, m.Mountpoint)
		}
	}
	return found, nil
}

// onShared says whether dir is on a mount that is shared: what is mounted below reaches pods then.
func onShared(mounts []*mountinfo.Info, dir string) bool {
	for _, m := range slices.Backward(mounts) {
		if m.Mountpoint == "/" || m.Mountpoint == dir || strings.HasPrefix(dir, m.Mountpoint+"/") {
			return slices.ContainsFunc(strings.Fields(m.Optional), func(option string) bool { return strings.HasPrefix(option, "shared:") })
		}
	}
	return false
}

// recordKubeletBind is called before the kubelet runs, which binds its directory on itself if that is on no shared
// mount (upstream's MakeRShared).
func recordKubeletBind(c Config) error {
	mounts, err := readMounts()
	if err != nil || onShared(mounts, c.KubeletDir) {
		return err
	}
	return changeFootprint(c, func(f *footprint) { f.KubeletBound = true })
}

// unbindKubeletDir takes the kubelet's bind away. What else is mounted there, under it, is the operator's.
func unbindKubeletDir(c Config) error {
	f, err := readFootprint(c)
	if err != nil || !f.KubeletBound {
		return err
	}
	mounts, err := readMounts()
	if err != nil || !boundOnItself(mounts, c.KubeletDir) {
		return err
	}
	if err := mount.Unmount(c.KubeletDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", c.KubeletDir, err)
	}
	return nil
}

// boundOnItself says whether the topmost mount on dir shows what is under it.
func boundOnItself(mounts []*mountinfo.Info, dir string) bool {
	for _, top := range slices.Backward(mounts) {
		if top.Mountpoint != dir {
			continue
		}
		i := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return m.ID == top.Parent })
		if i < 0 {
			return false
		}
		under := mounts[i]
		below, err := filepath.Rel(under.Mountpoint, dir)
		return err == nil && top.Major == under.Major && top.Minor == under.Minor && top.Root == filepath.Join(under.Root, below)
	}
	return false
}
