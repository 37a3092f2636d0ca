// Package durable makes changes of the file system that survive crashes and power cuts: afterwards
// a file has either its old or its new content, whole.
//
// Its functions may be called from any goroutine, except two at once for the same path.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile replaces path by a file of this content and mode. The temporary file has a fixed name,
// so the next write of path after a crash reuses the file that the crash left.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	if err := writeFile(path, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func writeFile(path string, data []byte, mode os.FileMode) (err error) {
	temp, err := os.OpenFile(Temporary(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	if err := temp.Chmod(mode); err != nil {
		return err
	}
	if _, err := temp.Write(data); err != nil {
		return err
	}
	if err := errors.Join(temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Temporary returns the name of WriteFile's temporary file for path.
func Temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// IsDiskFull reports whether err comes from a write to a full disk or over a quota of the file
// system. The errno of fdatasync(2), which has no path, does not count: a disk that is full at a
// sync may have lost data that it accepted before.
func IsDiskFull(err error) bool {
	var write *fs.PathError
	return errors.As(err, &write) && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT))
}
