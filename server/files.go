package server

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mote-k8s/mote/internal/durable"
)

// updateFile is durable.WriteFile for a file that may already be as it should be.
func updateFile(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return setMode(path, mode)
	}
	return durable.WriteFile(path, data, mode)
}

// removeFile removes a file for good, if there is one.
func removeFile(path string) error {
	if err := os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// makeDir makes a directory that only its owner may enter.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return setMode(dir, 0o700)
}

// setMode changes a file's permissions if they differ. A chmod to what they are already writes the inode all the same, and
// certificates are looked at every minute.
func setMode(path string, mode os.FileMode) error {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() == mode {
		return err
	}
	return os.Chmod(path, mode)
}

// updateCopy writes a file of a place that is not ours, and hence in place: it may be a link, or alone be writable there.
// It is for its owner alone, also where others could read the one that was there.
func updateCopy(path string, data []byte) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("copy the kubeconfig: %s is no file; set another --write-kubeconfig", path)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return setMode(path, 0o600)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = f.Chmod(0o600)
		if err == nil {
			_, err = f.Write(data)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("copy the kubeconfig: %w; set another --write-kubeconfig", err)
	}
	return nil
}
