package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moby/sys/mountinfo"

	"github.com/mote-k8s/mote/internal/layout"
)

// place is a directory inside that replaces the host's.
type place struct {
	path string
	mode os.FileMode
	// keep is the name of the place in Config.Dir. A place without one is in memory.
	keep string
	// hide means that the place only covers the host's directory.
	hide bool
}

// dataDir is the data directory of the server inside: the default one.
const dataDir = layout.DefaultData

// places lists the directories in which the server and the kubelet write much, or must not see the
// host's files. All other writes go to the overlay.
var places = [...]place{
	{path: dataDir, mode: 0o700, keep: "data"},
	{path: layout.DefaultKubelet, mode: 0o755, keep: "kubelet"},
	{path: "/var/log", mode: 0o755, keep: "log"},
	{path: "/run", mode: 0o755},
	{path: "/tmp", mode: 0o777 | os.ModeSticky},
	{path: "/var/tmp", mode: 0o777 | os.ModeSticky},
	{path: "/var/lib/cni", mode: 0o755},
	{path: "/etc/mote", mode: 0o755, hide: true},
	{path: "/etc/cni", mode: 0o755, hide: true},
}

// newRoot replaces the root of the mount namespace with the sandbox's:
//
//	stage (tmpfs)
//	├── layers/N/{upper,work}   everything that is written over the host's files
//	├── places/N                a directory for each place in memory
//	└── root                    overlay of / with everything else on it; becomes /
func newRoot(sp spec) error {
	// From here on, mounts made inside do not appear on the host, nor the host's inside.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	if err := mount("mote-sandbox", sp.Stage, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	r := &rootBuilder{stage: sp.Stage, root: filepath.Join(sp.Stage, "root")}
	if err := mkdir(r.root, 0o755); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return r.hostFiles(mounts) },
		func() error { return r.places(sp.Dir) },
		r.devices,
		func() error { return r.kernel(hs) },
		func() error { return r.images(sp.Images, sp.Dir != "") },
		func() error { return r.program(sp.Exe) },
		func() error { return pivot(r.root) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type rootBuilder struct {
	stage, root string
	layers      int
}

// at returns the path at which path, inside, is found until pivot.
func (r *rootBuilder) at(path string) string { return filepath.Join(r.root, path) }

// overlay shows the host's directory at the same path inside. Writes go to memory.
func (r *rootBuilder) overlay(path string) error {
	layer := filepath.Join(r.stage, "layers", strconv.Itoa(r.layers))
	r.layers++
	upper, work := filepath.Join(layer, "upper"), filepath.Join(layer, "work")
	for _, dir := range []string{upper, work} {
		if err := mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", escapeOverlay(path), upper, work)
	err := mount("mote-sandbox", r.at(path), "overlay", 0, options)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: the kernel has no overlay file system; load its module with: modprobe overlay", err)
	}
	return err
}

// escapeOverlay escapes the characters that separate an overlay's options and layers.
func escapeOverlay(path string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(path)
}

// hostFiles shows the host's files. An overlay does not show mounts below its lower directory, so
// each file system of the host is shown by itself: as an overlay if a place is on it, otherwise
// read-only.
func (r *rootBuilder) hostFiles(mounts []*mountinfo.Info) error {
	if err := r.overlay("/"); err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Mountpoint == "/" || isPseudo(m.FSType) || isCovered(m.Mountpoint) {
			continue
		}
		if _, err := os.Lstat(r.at(m.Mountpoint)); err != nil {
			continue // it is below a mount that is not shown
		}
		if holdsPlace(m.Mountpoint) {
			if err := r.overlay(m.Mountpoint); err != nil {
				return err
			}
			continue
		}
		err := bindReadOnly(m.Mountpoint, r.at(m.Mountpoint))
		if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrNotExist) {
			return err // except that of a user's FUSE mount, which is closed to root and is not shown
		}
	}
	return nil
}

// isPseudo reports whether a file system of this type holds no stored files. The sandbox has its
// own of each type that it needs. Overlays below / belong to the containers of other container
// engines.
func isPseudo(fstype string) bool {
	switch fstype {
	case "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs",
		"efivarfs", "fuse.lxcfs", "fuse.portal", "fusectl", "hugetlbfs", "mqueue", "nsfs", "overlay", "proc",
		"pstore", "ramfs", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs":
		return true
	}
	return false
}

// isCovered reports whether the sandbox has something of its own at path.
func isCovered(path string) bool {
	for _, top := range []string{"/proc", "/sys", "/dev"} {
		if within(path, top) {
			return true
		}
	}
	for _, p := range places {
		if within(path, p.path) {
			return true
		}
	}
	return false
}

func holdsPlace(path string) bool {
	for _, p := range places {
		if within(p.path, path) {
			return true
		}
	}
	return false
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// places mounts an empty directory of the stage, or a directory in dir, on each place.
func (r *rootBuilder) places(dir string) error {
	for i, p := range places {
		if _, err := os.Stat(r.at(p.path)); err != nil && p.hide {
			continue // the host does not have it
		}
		source := filepath.Join(r.stage, "places", strconv.Itoa(i))
		if dir != "" && p.keep != "" {
			source = filepath.Join(dir, p.keep)
		}
		if err := mkdir(source, p.mode); err != nil {
			return err
		}
		if err := mkdir(r.at(p.path), p.mode); err != nil {
			return err
		}
		if err := bind(source, r.at(p.path)); err != nil {
			return err
		}
	}
	return nil
}

// images puts archives into the directory from which the server imports them. A kept cluster gets
// copies, because it imports them again at its next start. Otherwise the host's files are shown.
func (r *rootBuilder) images(archives []string, keep bool) error {
	if len(archives) == 0 {
		return nil
	}
	dir := r.at(layout.Data(dataDir).Images())
	if err := mkdir(dir, 0o755); err != nil {
		return err
	}
	for i, archive := range archives {
		// Two archives in different directories may have the same name. The name must not look
		// unfinished: the server skips files with such names.
		name := strings.TrimRight(strings.TrimSuffix(strings.TrimSuffix(filepath.Base(archive), ".part"), ".tmp"), "~")
		target := filepath.Join(dir, fmt.Sprintf("%02d-%s", i, name))
		var err error
		if keep {
			err = copyFile(archive, target)
		} else {
			err = showFile(archive, target)
		}
		if err != nil {
			return fmt.Errorf("image archive: %w", err)
		}
	}
	return nil
}

// copyFile first writes under a name that is not an archive's, so that half a copy is never
// imported.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to + ".part")
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(to+".part", to)
	}
	if err != nil {
		return errors.Join(err, os.Remove(to+".part"))
	}
	return nil
}

// program shows the mote file inside, under each of its names.
func (r *rootBuilder) program(exe string) error {
	target := r.at(exeInside)
	if err := mkdir(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if err := showFile(exe, target); err != nil {
		return err
	}
	for _, name := range commandNames[1:] { // the first one is the file itself
		if err := os.Symlink(exeInside, filepath.Join(filepath.Dir(target), name)); err != nil {
			return fmt.Errorf("link a command: %w", err)
		}
	}
	return nil
}

// pivot makes root the root of the namespace and detaches everything that was mounted before.
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("change to the new root: %w", err)
	}
	// Both arguments name one directory: the old root is mounted on top of the new one
	// (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("change to the new root: %w", err)
	}
	// Pods may use volumes that propagate mounts. Those need a shared root, as hosts have it.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}
