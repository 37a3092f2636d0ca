package payload

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// bufferSize is the number of bytes that are read or written at once. A larger buffer is not faster
// here.
const bufferSize = 256 << 10

// verify returns the names of the files in dir that are missing or do not match the manifest. It
// reads and hashes each file: a cheaper check would miss a flipped byte, and the files are then in
// the page cache when the first pod needs them.
func (a archive) verify(dir string) ([]string, error) {
	problems := make([]error, len(a.Files))
	good := make([]bool, len(a.Files))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(a.Files)) {
		workers.Go(func() {
			buffer := make([]byte, bufferSize)
			for i := range next {
				good[i], problems[i] = a.Files[i].matches(dir, buffer)
			}
		})
	}
	for i := range a.Files {
		next <- i
	}
	close(next)
	workers.Wait()
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	var bad []string
	for i, f := range a.Files {
		if !good[i] {
			bad = append(bad, f.Name)
		}
	}
	return bad, nil
}

// matches reports whether the file in dir matches its entry in the manifest.
func (f file) matches(dir string, buffer []byte) (bool, error) {
	path := filepath.Join(dir, f.Name)
	// O_NOFOLLOW: Unpack wrote no links. O_NONBLOCK: opening a pipe must not block.
	in, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENXIO):
		return false, nil
	case err != nil:
		return false, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return false, err
	}
	if info.Mode() != programMode || info.Size() != f.Size {
		return false, nil
	}
	hash := sha256.New()
	_, err = io.CopyBuffer(hash, onlyReader{in}, buffer)
	if errors.Is(err, unix.EIO) {
		// This is a bad block. A new file is written elsewhere on the disk.
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("verify %s: %w", path, err)
	}
	return hex.EncodeToString(hash.Sum(nil)) == f.SHA256, nil
}

// onlyReader hides File.WriteTo, which would make io.CopyBuffer ignore its buffer.
type onlyReader struct{ io.Reader }

// removeStrangers removes everything in dir that is not in the manifest, such as partial files.
func (a archive) removeStrangers(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if a.has(e.Name()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (a archive) has(name string) bool {
	for _, f := range a.Files {
		if f.Name == name {
			return true
		}
	}
	return false
}
