package rescue

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/wal"
	"github.com/mote-k8s/mote/internal/durable"
)

// create makes an empty store, which may have given out revisions up to above. It fills a file
// beside path and moves it there once it is on the disk: whatever interrupts a first start, path is
// absent or a store.
func create(path string, above int64) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := createLog(logPath(path)); err != nil {
		return err
	}
	draft := path + ".new"
	err := build(draft, func(b *builder) error {
		b.setCounters(format.Counters{Revision: format.FirstRevision, LogSequence: 1, LogMarked: 1, Ceiling: above})
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	// The names of the file and of its directory must be as durable as the file's contents.
	return errors.Join(durable.SyncDir(dir), durable.SyncDir(filepath.Dir(dir)))
}

// createLog makes the log's files, so that a store without them is known to have lost them. It
// refuses a log with frames: data of another store must not become part of this one. A log without
// frames, which has at most the zeros by which a file grows, belongs to a first start that was
// interrupted.
func createLog(path string) error {
	files, err := wal.OpenFiles(path)
	if err != nil {
		return err
	}
	_, found, err := wal.Open(files, 1, true, func([]byte) error { return errOrphanLog })
	if found.Damage != nil {
		for _, f := range files {
			unwritten, readErr := onlyZeros(f)
			if err = errors.Join(err, readErr); !unwritten {
				err = errors.Join(err, errOrphanLog)
			}
		}
	}
	if err == nil {
		_, err = wal.Create(files, 1)
	}
	return errors.Join(err, files[0].Close(), files[1].Close())
}

func onlyZeros(f wal.File) (bool, error) {
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	return len(bytes.Trim(data, "\x00")) == 0, err
}
