package server

import (
	"bytes"
	"os"

	"github.com/mote-k8s/mote/internal/durable"
)

// updateFile is durable.WriteFile for a file that may already be as it should be.
func updateFile(path string, data []byte, mode os.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return os.Chmod(path, mode)
	}
	return durable.WriteFile(path, data, mode)
}

// makeDir makes a directory that only its owner may enter.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}
