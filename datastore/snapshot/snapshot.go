// Package snapshot keeps snapshots of the cluster's state, one file each. From such a file another
// machine can take over the cluster. A snapshot holds the store at one moment, and the keys without
// which the store cannot be used.
//
// It owns the format of the files, their directory, the schedule and the restore. It leaves the
// source of the store's bytes to a Source. Enter through Folder to save, list and prune, through
// Restore and Resume to restore, and through Newest to repair a store. Several processes may use a
// Folder at once; Restore and Resume need the data directory's lock.
//
// Invariants:
//   - A file under its final name is complete: it was read back, and its store checked, before it
//     got that name.
//   - No data is returned or put in place unless its checksum is the one in the manifest.
//   - The newest valid snapshot is never pruned.
//   - A restore sets the previous data aside and does not delete it. Resume finishes an interrupted
//     restore.
//
// ../README.md describes the format. Each manifest has its version, Format.
package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Format and FormatEncrypted are the versions of the file's layout that this package writes and
// reads.
const (
	Format          = 1
	FormatEncrypted = 2 // the first frame is in an age file
)

// Parts of a snapshot: the store file, and the control plane's files below their directory.
const (
	storePart   = "datastore/state.db"
	serverParts = "server/"
)

// ErrDamaged is returned for a snapshot that has changed since it was written, and for a file that
// is not a snapshot.
var ErrDamaged = errors.New("damaged snapshot")

// Manifest describes a snapshot and lists its contents.
type Manifest struct {
	Format int `json:"format"`
	// Mote and Kubernetes are the versions that wrote the store.
	Mote       string `json:"mote"`
	Kubernetes string `json:"kubernetes"`
	// Node is the node on which the snapshot was taken.
	Node string `json:"node"`
	// Cluster is the SHA-256 of the cluster CA's certificate, in hexadecimal; empty if there was
	// none.
	Cluster string `json:"cluster"`
	// Revision is the last revision that the store had given out.
	Revision int64     `json:"revision"`
	Time     time.Time `json:"time"`
	Parts    []Part    `json:"parts"`
	// Encryption is nil when the snapshot is not encrypted.
	Encryption *Encryption `json:"encryption,omitempty"`
}

// Part is one file in a snapshot.
type Part struct {
	// Name is the file's path below the data directory.
	Name string      `json:"name"`
	Mode fs.FileMode `json:"mode"`
	Size int64       `json:"size"`
	// SHA256 is the checksum of its contents, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// size returns the total size of the parts.
func (m *Manifest) size() (n int64) {
	for _, p := range m.Parts {
		n += p.Size
	}
	return n
}

// Stream is a store at one moment, as the bytes of its file.
type Stream struct {
	Revision, Size int64
	io.Reader
}

// Source opens a Stream, which ends with ctx.
type Source func(ctx context.Context) (*Stream, error)

// Origin describes what goes into a snapshot in addition to the store.
type Origin struct {
	// ServerDir is the directory of the control plane's keys, <data-dir>/server. All files in it
	// are copied.
	ServerDir string
	// Mote, Kubernetes and Node are for the manifest.
	Mote, Kubernetes, Node string
	// Recipients are the age public keys for which the snapshot is encrypted. Without any it is not
	// encrypted.
	Recipients []string
}

// Progress receives the number of bytes done and the total during long work.
type Progress func(done, all int64)

// Fingerprint returns the Manifest.Cluster of the cluster whose keys are in serverDir; empty if
// there are no keys yet.
func Fingerprint(serverDir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(serverDir, "tls", "server-ca.crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the cluster's authority: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", nil // the start of the control plane reports what is wrong with it
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}
