package regular

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// CheckOwner returns an error when a user other than the owner can change the content of path: when
// the file or directory that path leads to, or its parent directory, is writable for others, or for
// a group other than root's. It follows links. A directory with the sticky bit, such as /tmp, is no
// reason to refuse: only owners can replace their files in it.
//
// warning is not empty when the owner is neither root, nor this process's user, nor the caller of
// sudo: a file of the host that is mounted into a container often belongs to another user.
func CheckOwner(path string) (warning string, err error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	if err := writableByOthers(real, info); err != nil {
		return "", err
	}
	parent := filepath.Dir(real)
	above, err := os.Stat(parent)
	if err != nil {
		return "", err
	}
	if above.Mode()&fs.ModeSticky == 0 {
		if err := writableByOthers(parent, above); err != nil {
			return "", fmt.Errorf("%s can be replaced by other users: %w", path, err)
		}
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; !trusted(owner) {
		warning = fmt.Sprintf("%s belongs to user %d, who can change it; run chown root %s", real, owner, real)
	}
	return warning, nil
}

func writableByOthers(path string, info fs.FileInfo) error {
	mode := info.Mode().Perm()
	group := info.Sys().(*syscall.Stat_t).Gid
	if mode&0o002 != 0 || mode&0o020 != 0 && group != 0 {
		return &fs.PathError{Op: "trust", Path: path, Err: fmt.Errorf("mode %04o lets other users change it; run chmod go-w %s", mode, path)}
	}
	return nil
}

// trusted reports whether the files of owner are as trustworthy as this process's own.
func trusted(owner uint32) bool {
	if owner == 0 || int(owner) == os.Geteuid() {
		return true
	}
	// Only root's environment counts, because sudo sets it.
	caller, err := strconv.ParseUint(os.Getenv("SUDO_UID"), 10, 32)
	return os.Geteuid() == 0 && err == nil && uint32(caller) == owner
}
