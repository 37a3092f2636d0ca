// Package snapshot keeps copies of the cluster's state: one file each, from which another machine can be made what
// this one was. It holds the store at one moment, and the keys without which the store is of no use.
//
// It owns the format of the files, their folder, when they are taken, and the restoring. Where the store's bytes
// come from is a Source's business. Enter through Folder to save, list and prune, through Restore and Resume to
// bring one back, and through Newest to repair a store. Folders may be used by several processes at once; Restore
// and Resume need the data directory's lock.
//
// Invariants:
//   - A file under its own name is whole: it was read back, and its store checked, before it got that name.
//   - Nothing is handed out or put in place that does not have the sum that the manifest gives.
//   - The newest snapshot that can be read is never pruned.
//   - What a restore replaces is set aside, not deleted; one that was interrupted is finished by Resume.
//
// The format is described in ../README.md and stamped into each manifest as Format.
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

// Format and FormatEncrypted are the versions of the file's layout that this package writes and reads.
const (
	Format          = 1
	FormatEncrypted = 2 // the first frame is in an age file
)

// Parts of a snapshot: the store's file, and the files of the control plane below their folder.
const (
	storePart   = "datastore/state.db"
	serverParts = "server/"
)

// ErrDamaged says that a snapshot is not what was written, or none at all.
var ErrDamaged = errors.New("damaged snapshot")

// Manifest says what a snapshot is and what is in it.
type Manifest struct {
	Format int `json:"format"`
	// Mote and Kubernetes are the versions that wrote the store.
	Mote       string `json:"mote"`
	Kubernetes string `json:"kubernetes"`
	// Node is the node that it was taken on.
	Node string `json:"node"`
	// Cluster is the SHA-256 of the certificate of the cluster's authority, in hexadecimal; empty if there was none.
	Cluster string `json:"cluster"`
	// Revision is the last that the store had given out.
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
	// SHA256 is of its contents, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// size is what the parts occupy together.
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

// Origin says what goes into a snapshot beside the store.
type Origin struct {
	// ServerDir is the folder of the control plane's keys, <data-dir>/server. All files in it are copied.
	ServerDir string
	// Mote, Kubernetes and Node are for the manifest.
	Mote, Kubernetes, Node string
	// Recipients are the age public keys that the snapshot is encrypted for; without any it is not.
	Recipients []string
}

// Progress is told how far long work is, in bytes of all.
type Progress func(done, all int64)

// Fingerprint is what a Manifest calls the cluster whose keys are in serverDir; empty if there are none yet.
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
		return "", nil // whoever starts the control plane says what is wrong with it
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}
