// Package payload owns the programs that are started once for each pod: runc, the containerd shim,
// the CNI plugins, pause and init. They are separate small files, because each of their processes
// would otherwise pay for the initialisation and memory of all of mote.
//
// They are built from the nested module src, packed into one compressed archive, and embedded with
// a manifest that holds each file's size and SHA-256. Unpack puts them on disk. The agent and the
// sandbox run them from there. Everything here is safe for concurrent use, by goroutines and by
// processes.
//
// On disk, where ROOT is <data-dir>/payload:
//
//	ROOT/                      flocked while a process writes below it
//	ROOT/<sha256 of archive>/  one version's programs; flocked, shared, by each process using them
//	ROOT/<...>/.NAME.partial   a file that is being written; a leftover of a crash is overwritten
//
// Invariants: a file appears under its own name only whole and verified. A directory counts as
// unpacked only if every file has the content, size and mode of the manifest, never because it
// exists. So a write that a power cut lost is found like any other damage, and nothing is synced.
package payload

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// ErrAbsent means that this mote was built without its payload, as a plain "go build" does.
var ErrAbsent = errors.New("this mote was built without its payload; build with scripts/build")

const (
	manifestName = "manifest.json"
	archiveName  = "payload.tar.zst"
)

// archive is one set of programs: their description and the source of their content.
type archive struct {
	manifest
	// open returns the zstd-compressed tar.
	open func() (io.ReadCloser, error)
}

// manifest is the file that scripts/build-payload writes beside the archive.
type manifest struct {
	// Archive is the hexadecimal SHA-256 of the compressed archive, and the name of the directory.
	Archive string `json:"archive"`
	// Files lists the programs in the order of the archive.
	Files []file `json:"files"`
}

type file struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Dir returns the directory below root into which Unpack puts this mote's programs. It returns ""
// if this mote was built without a payload.
func Dir(root string) string {
	a, err := read(embedded, embeddedDir)
	if err != nil {
		return ""
	}
	return filepath.Join(root, a.Archive)
}

// read reads the manifest of the archive in dir. The archive itself is read only when it is opened.
func read(files embed.FS, dir string) (archive, error) {
	data, err := files.ReadFile(dir + "/" + manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return archive{}, ErrAbsent
	}
	if err != nil {
		return archive{}, fmt.Errorf("read the payload's manifest: %w", err)
	}
	// Open reads an embedded file in place. ReadFile would copy the whole archive.
	a := archive{open: func() (io.ReadCloser, error) { return files.Open(dir + "/" + archiveName) }}
	if err := json.Unmarshal(data, &a.manifest); err != nil {
		return archive{}, fmt.Errorf("read the payload's manifest: %w", err)
	}
	return a, nil
}
