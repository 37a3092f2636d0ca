package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// kubeletBind is the kubelet's mount of its directory on itself. The kubelet makes one at a start
// if the directory is on no shared mount, so that later mounts below it reach pods (upstream's
// MakeRShared).
type kubeletBind struct {
	// Dir is the kubelet's directory, without symbolic links.
	Dir string `json:"dir"`
	// Boot identifies the boot of the kernel in which the mount was made. The next boot removes it.
	Boot string `json:"boot"`
	// Under is the number of mounts that Dir had before. They are the operator's.
	Under int `json:"under"`
}

// recordKubeletBind records the bind that the kubelet may make. It must be called before the
// kubelet runs, when the kubelet's directory exists.
func recordKubeletBind(c Config) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	dir := followed(c.KubeletDir)
	return changeFootprint(c, func(f *footprint) {
		f.KubeletBinds = slices.DeleteFunc(f.KubeletBinds, func(b kubeletBind) bool { return b.Boot != boot })
		known := slices.ContainsFunc(f.KubeletBinds, func(b kubeletBind) bool { return b.Dir == dir })
		if !known && !onShared(mounts, c.KubeletDir) {
			f.KubeletBinds = append(f.KubeletBinds, kubeletBind{dir, boot, len(mountsOn(mounts, dir))})
		}
	})
}

// removeKubeletBinds unmounts the kubelet's binds and deletes them from the footprint.
func removeKubeletBinds(c Config) error {
	f, err := readFootprint(c)
	if err != nil || len(f.KubeletBinds) == 0 {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	for _, bind := range f.KubeletBinds {
		if bind.Boot != boot {
			continue
		}
		if err := bind.remove(); err != nil {
			return err
		}
	}
	return changeFootprint(c, func(f *footprint) { f.KubeletBinds = nil })
}

// remove unmounts until only the earlier mounts are left. A kubelet that died between its two calls
// has made one more mount.
func (b kubeletBind) remove() error {
	for {
		mounts, err := readMounts()
		if err != nil || len(mountsOn(mounts, b.Dir)) <= b.Under || !boundOnItself(mounts, b.Dir) {
			return err
		}
		if err := mount.Unmount(b.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", b.Dir, err)
		}
	}
}

// bootID returns the ID of this boot of the kernel.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// onShared reports whether dir is on a shared mount. Like upstream's MakeRShared, it takes the last
// mount in the list whose path is a prefix of dir.
func onShared(mounts []*mountinfo.Info, dir string) bool {
	for _, m := range slices.Backward(mounts) {
		if m.Mountpoint == "/" || m.Mountpoint == dir || strings.HasPrefix(dir, m.Mountpoint+"/") {
			return slices.ContainsFunc(strings.Fields(m.Optional), func(option string) bool { return strings.HasPrefix(option, "shared:") })
		}
	}
	return false
}

func mountsOn(mounts []*mountinfo.Info, dir string) []*mountinfo.Info {
	var on []*mountinfo.Info
	for _, m := range mounts {
		if m.Mountpoint == dir {
			on = append(on, m)
		}
	}
	return on
}

// boundOnItself reports whether the topmost mount on dir shows the directory under it.
func boundOnItself(mounts []*mountinfo.Info, dir string) bool {
	on := mountsOn(mounts, dir)
	i := slices.IndexFunc(on, func(m *mountinfo.Info) bool {
		return !slices.ContainsFunc(on, func(above *mountinfo.Info) bool { return above.Parent == m.ID })
	})
	if i < 0 {
		return false
	}
	top := on[i]
	i = slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return m.ID == top.Parent })
	if i < 0 {
		return false
	}
	under := mounts[i]
	below, err := filepath.Rel(under.Mountpoint, dir)
	return err == nil && top.Major == under.Major && top.Minor == under.Minor && top.Root == filepath.Join(under.Root, below)
}
