// Package machine boots mote in a QEMU machine by software emulation: Debian's cloud kernel, cgroup
// v2, a disk, busybox as init, no systemd and no network card. The test uses the serial console and
// cuts the power with kill -9 of QEMU: data that the guest had not synced is lost with its memory.
package machine

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mote-k8s/mote/test/images"
)

//go:embed testdata
var testdata embed.FS

// initrdModules are the modules that the kernel needs for its disk, in the order of loading.
var initrdModules = [...]string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
}

// tools are Debian's programs that a node needs in addition to mote; all others are busybox.
var tools = [...]string{"mount", "umount", "ip", "nft", "iptables", "iptables-save", "iptables-restore"}

// diskSize is in the format of mke2fs. The file is sparse.
const diskSize = "6G"

// kernel is an unpacked linux-image package.
type kernel struct {
	image   string // vmlinuz
	modules string // lib/modules/VERSION
	version string
}

func findKernel(dir string) (kernel, error) {
	found, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	if len(found) != 1 {
		return kernel{}, fmt.Errorf("%d kernels in %s, want 1; run it with: sudo ./scripts/test machine", len(found), dir)
	}
	version := strings.TrimPrefix(filepath.Base(found[0]), "vmlinuz-")
	return kernel{found[0], filepath.Join(dir, "lib", "modules", version), version}, nil
}

// makeDisk makes an ext4 image of a small Linux with the mote file, which the script service of
// testdata runs, and with the files that add puts below its root.
func makeDisk(path string, k kernel, mote, service string, add func(root string) error) error {
	root, err := os.MkdirTemp(filepath.Dir(path), "root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	for _, dir := range []string{
		"bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root", "var/log",
		"var/lib/mote/images", "usr/bin", "usr/sbin", "usr/local/bin", "lib/modules",
	} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	steps := []func() error{
		func() error { return installBusybox(root) },
		func() error { return installTools(root) },
		func() error { return installScripts(root, service) },
		func() error { return command("cp", "-a", k.modules, filepath.Join(root, "lib/modules")) },
		func() error { return command(images.BusyboxPath, "depmod", "-b", root, k.version) },
		func() error { return copyFile(filepath.Join(root, "usr/local/bin/mote"), mote) },
		func() error { return os.Symlink("mote", filepath.Join(root, "usr/local/bin/kubectl")) },
		func() error { return add(root) },
		func() error { return command("mke2fs", "-q", "-t", "ext4", "-d", root, path, diskSize) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("make disk: %w", err)
		}
	}
	return nil
}

func installBusybox(root string) error {
	if err := copyFile(filepath.Join(root, "bin/busybox"), images.BusyboxPath); err != nil {
		return err
	}
	list, err := exec.Command(images.BusyboxPath, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("list busybox's tools: %w", err)
	}
	for _, path := range strings.Fields(string(list)) {
		link := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("/bin/busybox", link); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// installTools copies Debian's programs, and the libraries that ldd lists, to the same paths as on
// the machine that runs the test.
func installTools(root string) error {
	library := regexp.MustCompile(`(/\S+) \(0x`)
	install := func(path string) error {
		to := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		// The target may be a link to busybox; writing through it would overwrite busybox.
		if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return copyFile(to, path)
	}
	for _, tool := range tools {
		path, err := exec.LookPath(tool)
		if err != nil {
			return err
		}
		if err := removeLinks(root, tool); err != nil {
			return err
		}
		if err := install(path); err != nil {
			return err
		}
		libraries, err := exec.Command("ldd", path).Output()
		if err != nil {
			return fmt.Errorf("list the libraries of %s: %w", path, err)
		}
		for _, m := range library.FindAllStringSubmatch(string(libraries), -1) {
			if err := install(m[1]); err != nil {
				return err
			}
		}
	}
	extensions, err := filepath.Glob("/usr/lib/*-linux-gnu/xtables/*.so")
	for _, path := range extensions {
		err = errors.Join(err, install(path))
	}
	return err
}

// removeLinks removes busybox's links of a name from every directory of the PATH.
func removeLinks(root, tool string) error {
	for _, dir := range []string{"bin", "sbin", "usr/bin", "usr/sbin"} {
		if err := os.Remove(filepath.Join(root, dir, tool)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func installScripts(root, service string) error {
	for name, file := range map[string]string{"rc": "rc", "mote.rc": service, "inittab": "inittab", "pods.yaml": "pods.yaml"} {
		content, err := testdata.ReadFile("testdata/" + file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, "etc", name), content, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644),
		os.WriteFile(filepath.Join(root, "etc/hosts"), []byte("127.0.0.1 localhost machine\n"), 0o644),
	)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return out.Close()
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
