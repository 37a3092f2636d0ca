package pki

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/mote-k8s/mote/internal/durable"
)

// updateCopy writes a file that may be anywhere. It writes the file in place: the path may be a
// link, or only the file may be writable. Only the owner may read the file, even if other users
// could read the previous one.
func updateCopy(path string, data []byte) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("copy the kubeconfig: %s is no file; set another --write-kubeconfig", path)
	}
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return durable.SetMode(path, 0o600)
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
