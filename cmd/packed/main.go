// Command packed is the launcher in front of the shipped mote file (internal/pack): it unpacks the
// real program into a cache directory at the first start and executes it.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mote-k8s/mote/internal/pack"
)

func main() {
	// become returns only on failure.
	fmt.Fprintln(os.Stderr, "mote:", become())
	os.Exit(1)
}

func become() error {
	path, err := place()
	if err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, os.Args, os.Environ()))
}

// place unpacks to the first writable cache directory.
func place() (string, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("open own file: %w", err)
	}
	defer self.Close()
	info, err := self.Stat()
	if err != nil {
		return "", fmt.Errorf("look at own file: %w", err)
	}
	program, err := pack.Open(self, info.Size())
	if err != nil {
		return "", err
	}
	var errs []error
	for _, root := range cacheRoots() {
		path, err := program.Place(root, "mote")
		if err == nil {
			return path, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("cannot unpack mote, which needs %d MiB: %w; name a folder with MOTE_CACHE_DIR", program.Size>>20, errors.Join(errs...))
}

// cacheRoots returns the directories to try, best first. /run is for machines with a read-only
// /var.
func cacheRoots() []string {
	if dir := os.Getenv("MOTE_CACHE_DIR"); dir != "" {
		return []string{dir}
	}
	if os.Geteuid() == 0 {
		return []string{"/var/cache/mote", "/run/mote-cache"}
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return []string{filepath.Join(dir, "mote")}
	}
	return []string{filepath.Join(os.TempDir(), fmt.Sprintf("mote-%d", os.Geteuid()))}
}
