package machine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mote-k8s/mote/test/images"
)

// makeInitrd writes the archive that the kernel unpacks into its first file system: busybox, the
// modules of the disk and the script that mounts it. The format is cpio's "newc":
// https://docs.kernel.org/driver-api/early-userspace/buffer-format.html
func makeInitrd(path string, k kernel) error {
	busybox, err := os.ReadFile(images.BusyboxPath)
	if err != nil {
		return err
	}
	script, err := testdata.ReadFile("testdata/initrd.sh")
	if err != nil {
		return err
	}
	const directory, file, link = 0o40755, 0o100755, 0o120777
	var w bytes.Buffer
	for _, dir := range []string{"bin", "dev", "proc", "root", "modules"} {
		writeEntry(&w, dir, directory, nil)
	}
	writeEntry(&w, "bin/busybox", file, busybox)
	for _, name := range []string{"sh", "mount", "umount", "insmod", "switch_root"} {
		writeEntry(&w, "bin/"+name, link, []byte("busybox"))
	}
	writeEntry(&w, "init", file, script)
	for _, name := range initrdModules {
		module, err := findModule(k, name)
		if err != nil {
			return err
		}
		writeEntry(&w, "modules/"+name+".ko", file, module)
	}
	writeEntry(&w, "TRAILER!!!", 0, nil)
	return os.WriteFile(path, w.Bytes(), 0o644)
}

// writeEntry appends one entry; name and data are each padded to four bytes.
func writeEntry(w *bytes.Buffer, name string, mode uint32, data []byte) {
	const oneLink, headerSize = 1, 110
	fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		0, mode, 0, 0, oneLink, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	w.WriteString(name)
	w.Write(make([]byte, 1+padding(headerSize+len(name)+1)))
	w.Write(data)
	w.Write(make([]byte, padding(len(data))))
}

func padding(n int) int { return (4 - n%4) % 4 }

// findModule reads a module, plain or compressed as in newer Debian releases. All of Debian's
// kernels have it as a module, not built in.
func findModule(k kernel, name string) ([]byte, error) {
	out, err := exec.Command("find", k.modules, "-name", name+".ko*").Output()
	if err != nil {
		return nil, fmt.Errorf("find module %s: %w", name, err)
	}
	paths := strings.Fields(string(out))
	if len(paths) != 1 {
		return nil, fmt.Errorf("%d modules named %s in %s, want 1", len(paths), name, k.modules)
	}
	if slices.Contains([]string{".xz", ".zst"}, filepath.Ext(paths[0])) {
		return exec.Command("sh", "-c", `case $1 in *.xz) xz -dc "$1" ;; *) zstd -dc "$1" ;; esac`, "sh", paths[0]).Output()
	}
	return os.ReadFile(paths[0])
}
