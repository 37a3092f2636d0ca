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

// readMounts lists all mounts in the kernel's order.
func readMounts() ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return mounts, nil
}

// unmountBelow unmounts everything that is mounted below dir. It fails if a mount remains, because
// the caller is about to delete files there.
func unmountBelow(dir string) error {
	mounted, err := mountsBelow(dir)
	if err != nil || len(mounted) == 0 {
		return err
	}
	// The latest mount goes first, because it may be on top of an earlier one.
	for _, point := range slices.Backward(mounted) {
		if err := mount.UnmountAll(point, unix.UMOUNT_NOFOLLOW); err != nil {
			// A program still uses it. A detached mount ends with its last user.
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

// mountsBelow lists the mount points strictly below dir, in the order in which they were mounted.
// dir itself may be the operator's own mount (a disk for /var/lib/kubelet).
func mountsBelow(dir string) ([]string, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	// The list has paths without symbolic links. If dir itself is a link, it leads to files that
	// are not mote's.
	dir = filepath.Join(followed(filepath.Dir(dir)), filepath.Base(dir))
	var found []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Mountpoint, dir+"/") {
			found = append(found, m.Mountpoint)
		}
	}
	return found, nil
}

// followed returns path without symbolic links, or path itself if it cannot be resolved.
func followed(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}
