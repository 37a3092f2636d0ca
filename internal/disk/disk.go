// Package disk returns the properties of the file system that contains a directory, or will contain
// it once it exists.
package disk

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Info describes a file system.
type Info struct {
	// Dir is the directory that was checked: the requested one, or its nearest existing parent.
	Dir string
	// Type is the kernel's number for the type, such as unix.OVERLAYFS_SUPER_MAGIC (statfs(2)).
	Type int64
	// Size and Free are in bytes. Free is the space that any user may use.
	Size, Free uint64
	// Inodes and FreeInodes are 0 where their number is not fixed, as on btrfs.
	Inodes, FreeInodes uint64
}

// Of returns the properties of the file system of dir, an absolute path. The error names dir.
func Of(dir string) (Info, error) {
	var st unix.Statfs_t
	at := dir
	err := unix.Statfs(at, &st)
	for errors.Is(err, unix.ENOENT) && at != "/" {
		at = filepath.Dir(at)
		err = unix.Statfs(at, &st)
	}
	if err != nil {
		return Info{}, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return Info{
		Dir: at, Type: int64(st.Type),
		Size: st.Blocks * uint64(st.Frsize), Free: st.Bavail * uint64(st.Frsize),
		Inodes: st.Files, FreeInodes: st.Ffree,
	}, nil
}
