package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// devices shows the host's device nodes inside. Making or removing nodes inside does not affect the
// host.
func (r *rootBuilder) devices() error {
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Mountpoint == "/dev" {
			if err := r.overlay("/dev"); err != nil {
				return err
			}
			break
		}
	}
	for _, m := range []struct{ path, fstype, options string }{
		{"/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"/dev/shm", "tmpfs", "mode=1777"},
		{"/dev/mqueue", "mqueue", ""},
	} {
		if err := os.MkdirAll(r.at(m.path), 0o755); err != nil {
			return fmt.Errorf("make a directory: %w", err)
		}
		err := mount(m.fstype, r.at(m.path), m.fstype, unix.MS_NOSUID|unix.MS_NOEXEC, m.options)
		if err != nil && !(m.fstype == "mqueue" && errors.Is(err, unix.ENODEV)) {
			return err // a missing mqueue is ignored: few programs need it, and few kernels lack it
		}
	}
	return nil
}

// kernel mounts the sandbox's own /proc, /sys and cgroups. It does not mount /sys/kernel/security:
// without it, containerd does not touch the host's AppArmor profiles.
func (r *rootBuilder) kernel(hs []hierarchy) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// The second /proc stays uncovered. The kernel lets a container with its own user namespace
	// mount /proc only if it sees one that nothing covers (mount_too_revealing).
	for _, path := range []string{"/proc", insideDir + "/proc"} {
		if err := mkdir(r.at(path), 0o555); err != nil {
			return err
		}
		if err := mount("proc", r.at(path), "proc", flags, ""); err != nil {
			return err
		}
	}
	if err := mount("sysfs", r.at("/sys"), "sysfs", flags, ""); err != nil {
		return err
	}
	if err := r.sysctls(); err != nil {
		return err
	}
	return r.cgroups(hs, flags)
}

// sysctls hides those settings of the whole kernel that the kubelet writes at the start
// (pkg/kubelet/cm, setupKernelTunables). It puts files over them that hold the values that the
// kubelet wants. So the host keeps its own settings.
func (r *rootBuilder) sysctls() error {
	for i, s := range []struct{ name, value string }{
		{"vm/overcommit_memory", "1"},
		{"vm/panic_on_oom", "0"},
		{"kernel/panic", "10"},
		{"kernel/panic_on_oops", "1"},
		{"kernel/keys/root_maxkeys", "1000000"},
		{"kernel/keys/root_maxbytes", "25000000"},
	} {
		target := r.at(filepath.Join("/proc/sys", s.name))
		if _, err := os.Stat(target); err != nil {
			continue // this kernel does not have the setting
		}
		private := filepath.Join(r.stage, "sysctl-"+strconv.Itoa(i))
		if err := os.WriteFile(private, []byte(s.value+"\n"), 0o644); err != nil {
			return fmt.Errorf("write a private sysctl: %w", err)
		}
		if err := bind(private, target); err != nil {
			return err
		}
	}
	return nil
}

// cgroups mounts the hierarchies at the paths that they have on the host. Their tops are the
// sandbox's groups.
func (r *rootBuilder) cgroups(hs []hierarchy, flags uintptr) error {
	const top = "/sys/fs/cgroup"
	if len(hs) == 1 && hs[0].v2 {
		return mount("cgroup2", r.at(top), "cgroup2", flags, "")
	}
	if err := mount("tmpfs", r.at(top), "tmpfs", flags, "mode=0755"); err != nil {
		return err
	}
	for _, h := range hs {
		if !within(h.mount, top) {
			continue
		}
		if err := mkdir(r.at(h.mount), 0o755); err != nil {
			return err
		}
		fstype := "cgroup"
		if h.v2 {
			fstype = "cgroup2"
		}
		if err := mount(fstype, r.at(h.mount), fstype, flags, h.options); err != nil {
			return err
		}
	}
	return copyLinks(top, r.at(top))
}

// copyLinks makes the symbolic links of one directory in another. On many hosts /sys/fs/cgroup/cpu
// is a link to cpu,cpuacct.
func copyLinks(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("list cgroup hierarchies: %w", err)
	}
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := os.Readlink(filepath.Join(from, e.Name()))
		if err == nil {
			err = os.Symlink(target, filepath.Join(to, e.Name()))
		}
		if err != nil {
			return fmt.Errorf("link a cgroup hierarchy: %w", err)
		}
	}
	return nil
}
