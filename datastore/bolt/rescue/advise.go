package rescue

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/datastore/wal"
)

var (
	errOrphanLog = errors.New("a log without its store")
	errNoLog     = errors.New("its log is missing")
)

// Advise returns err with what to do about a store at path that cannot be opened.
func Advise(path string, err error) error {
	advice := func(text string) error {
		return fmt.Errorf("cannot open datastore %s: %s (%w)", path, text, err)
	}
	const restore = "restore a snapshot with `mote datastore snapshot restore NAME`, see `mote datastore snapshot list`"
	refused := (*refusedError)(nil)
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("cannot open datastore %s: %w", path, err)
	case errors.Is(err, bolterrors.ErrTimeout):
		return advice("another process has it open; stop the other mote or use another data directory")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return advice("the disk is full; free some space or use another data directory")
	case errors.Is(err, syscall.EROFS):
		return advice("the file system is read-only; mount it writable or use another data directory")
	case errors.Is(err, fs.ErrPermission):
		return advice("no permission; run as the owner of the data directory")
	case errors.Is(err, syscall.EIO):
		return advice("the disk cannot be read; check it, then start again, or " + restore + " on another disk")
	case errors.Is(err, errOrphanLog):
		return advice(fmt.Sprintf("it is not there, but its log %s.* is; put it back, %s, or move the log away too to begin anew", logPath(path), restore))
	case errors.Is(err, errNoLog):
		return advice("without its log it may lack what was written last; put the log back or " + restore)
	case errors.Is(err, format.ErrOtherVersion):
		return advice(fmt.Sprintf("written by another version of mote, this one reads format %d; run that version or %s", format.Version, restore))
	case errors.Is(err, format.ErrNotStore), errors.Is(err, format.ErrDamaged), errors.Is(err, wal.ErrDamaged), errors.Is(err, syscall.EISDIR):
		return advice("not a mote datastore, or a damaged one; move its folder away or " + restore)
	default:
		return fmt.Errorf("cannot open datastore %s: %w", path, err)
	}
}
