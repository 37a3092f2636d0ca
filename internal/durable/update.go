package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// UpdateFile does the same as WriteFile, for a file that may already have this content and mode. It
// then writes nothing.
func UpdateFile(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return SetMode(path, mode)
	}
	return WriteFile(path, data, mode)
}

// RemoveFile removes a file durably, if there is one.
func RemoveFile(path string) error {
	if err := os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// MakeDir creates a directory that only its owner may enter.
func MakeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return SetMode(dir, 0o700)
}

// SetMode changes a file's permissions if they differ. A chmod to the same permissions still writes
// the inode, and certificates are checked every minute.
func SetMode(path string, mode os.FileMode) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() == mode {
		return err
	}
	return os.Chmod(path, mode)
}
