package wal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenFiles opens the files path.0 and path.1, and creates missing ones. Their names are durable
// once the caller has synced their directory.
func OpenFiles(path string) (Files, error) { return openFiles(path, os.O_RDWR|os.O_CREATE) }

// ReadFiles opens the files path.0 and path.1 read-only for Open. Both must exist.
func ReadFiles(path string) (Files, error) { return openFiles(path, os.O_RDONLY) }

func openFiles(path string, flag int) (Files, error) {
	var files Files
	for i := range files {
		f, err := os.OpenFile(fmt.Sprintf("%s.%d", path, i), flag, 0o600)
		if err != nil {
			for _, opened := range files[:i] {
				err = errors.Join(err, opened.Close())
			}
			return Files{}, err
		}
		files[i] = file{f}
	}
	return files, nil
}

type file struct{ *os.File }

func (f file) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f file) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
