package sandbox

import (
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// readMounts returns the mounts of the calling process. A parent comes before the mounts on it.
func readMounts() ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return mounts, nil
}

// mount calls mount(2). Its error names the mount point.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", firstOf(fstype, source), target, err)
	}
	return nil
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// bind makes the file or directory at source visible at target, with everything that is mounted
// below it.
func bind(source, target string) error {
	return mount(source, target, "", unix.MS_BIND|unix.MS_REC, "")
}

// showFile makes the host's file at source readable at target. target must not exist yet.
func showFile(source, target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make a mount point: %w", err)
	}
	f.Close()
	return bindReadOnly(source, target)
}

// bindReadOnly makes source visible at target, without what is mounted below it, and refuses
// writes.
func bindReadOnly(source, target string) error {
	if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// This keeps the flags of the mount: a remount may not drop them in all cases.
	var fs unix.Statfs_t
	if err := unix.Statfs(target, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", target, err)
	}
	const kept = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC // the same bits in both (statfs(2))
	return mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|uintptr(fs.Flags)&kept, "")
}

// mkdir works like os.MkdirAll. The last directory gets exactly mode, whatever the umask.
func mkdir(path string, mode os.FileMode) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	return os.Chmod(path, mode)
}
