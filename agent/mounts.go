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

// readMounts lists all mounts as the kernel does.
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
	// The list has paths without symbolic links. A link at the end of dir leads to what is not ours.
	dir = filepath.Join(followed(filepath.Dir(dir)), filepath.Base(dir))
	var found []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Mountpoint, dir+"/") {
			found = append(found, m.Mountpoint)
		}
	}
	return found, nil
}

// followed is path without symbolic links, or path itself where there is nothing to follow.
func followed(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
