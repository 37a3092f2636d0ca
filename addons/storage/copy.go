package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// chunk is the number of bytes of a file that are copied between two checks of the context.
const chunk = 64 << 20

// usage returns the number of bytes that the files below a directory of root use on the disk. Holes
// count as nothing, and a file with several names counts once.
func usage(ctx context.Context, root *os.Root, name string, seen map[uint64]bool) (int64, error) {
	dir, err := root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return 0, err
	}
	var bytes int64
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		path := filepath.Join(name, entry.Name())
		info, err := root.Lstat(path)
		if err != nil {
			return 0, err
		}
		stat, err := sys(info)
		if err != nil {
			return 0, err
		}
		if !seen[stat.Ino] {
			seen[stat.Ino] = true
			bytes += stat.Blocks * 512
		}
		if info.IsDir() {
			below, err := usage(ctx, root, path, seen)
			if err != nil {
				return 0, err
			}
			bytes += below
		}
	}
	return bytes, nil
}

// copier copies one tree. The source is an os.Root, because a pod may replace its directories by
// links during the copy. The target is not accessible to any pod.
type copier struct {
	ctx   context.Context
	from  *os.Root
	to    string
	links map[uint64]string // first name of each inode that has several
}

// copyTree copies everything below root to a new directory: files of all kinds with their owners,
// modes, times, extended attributes (not of links and devices), holes and hard links. Blocks are
// shared if the file system supports that.
func copyTree(ctx context.Context, root *os.Root, to string) error {
	c := &copier{ctx, root, to, make(map[uint64]string)}
	return c.directory(".")
}

// directory copies a directory. It sets the directory's own times last, because new entries change
// them.
func (c *copier) directory(name string) error {
	in, err := c.from.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	target := filepath.Join(c.to, name)
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	for {
		entries, err := in.ReadDir(1000)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for _, entry := range entries {
			if err := c.entry(filepath.Join(name, entry.Name())); err != nil {
				return err
			}
		}
		if err != nil {
			break
		}
	}
	out, err := os.Open(target)
	if err != nil {
		return err
	}
	defer out.Close()
	return attributes(in, out, info)
}

// entry copies a file, directory, link or other entry.
func (c *copier) entry(name string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	info, err := c.from.Lstat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return c.directory(name)
	}
	stat, err := sys(info)
	if err != nil {
		return err
	}
	target := filepath.Join(c.to, name)
	if stat.Nlink > 1 {
		if first := c.links[stat.Ino]; first != "" {
			return os.Link(first, target)
		}
		c.links[stat.Ino] = target
	}
	switch {
	case info.Mode().IsRegular():
		return c.file(name, target)
	case info.Mode()&fs.ModeSymlink != 0:
		to, err := c.from.Readlink(name)
		if err != nil {
			return err
		}
		err = os.Symlink(to, target)
		if err != nil {
			return err
		}
	default: // FIFO, socket, device
		if err := unix.Mknod(target, stat.Mode, int(stat.Rdev)); err != nil {
			return fmt.Errorf("make %s: %w", target, err)
		}
	}
	if err := os.Lchown(target, int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		if err := unix.Chmod(target, stat.Mode&0o7777); err != nil {
			return fmt.Errorf("change the mode of %s: %w", target, err)
		}
	}
	times := []unix.Timespec{unix.Timespec(stat.Atim), unix.Timespec(stat.Mtim)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, target, times, unix.AT_SYMLINK_NOFOLLOW)
}

// file copies a regular file.
func (c *copier) file(name, target string) error {
	in, err := c.from.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s was replaced while it was copied", name)
	}
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = c.contents(in, out, info.Size())
	if err == nil {
		err = attributes(in, out, info)
	}
	return errors.Join(err, out.Close())
}

// contents copies the bytes of a file. It shares the blocks if the file system supports that, and
// otherwise copies the data between the holes.
func (c *copier) contents(in, out *os.File, size int64) error {
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	for at := int64(0); at < size; {
		start, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return err
		}
		end, err := in.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for at = start; at < end; {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			if _, err := in.Seek(at, io.SeekStart); err != nil {
				return err
			}
			if _, err := out.Seek(at, io.SeekStart); err != nil {
				return err
			}
			n, err := io.CopyN(out, in, min(chunk, end-at))
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if at += n; n == 0 {
				return fmt.Errorf("%s became shorter while it was copied", in.Name())
			}
		}
	}
	return out.Truncate(size)
}

// attributes gives a file or directory the owner, extended attributes, mode and times of another
// one. A change of the owner removes capabilities and the set-user-ID bit, so it comes first.
func attributes(in, out *os.File, info fs.FileInfo) error {
	stat, err := sys(info)
	if err != nil {
		return err
	}
	if err := out.Chown(int(stat.Uid), int(stat.Gid)); err != nil {
		return err
	}
	if err := extended(int(in.Fd()), int(out.Fd())); err != nil {
		return fmt.Errorf("copy the extended attributes of %s: %w", in.Name(), err)
	}
	if err := unix.Fchmod(int(out.Fd()), stat.Mode&0o7777); err != nil {
		return fmt.Errorf("change the mode of %s: %w", out.Name(), err)
	}
	times := []unix.Timespec{unix.Timespec(stat.Atim), unix.Timespec(stat.Mtim)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, out.Name(), times, 0)
}

// extended copies extended attributes. It does nothing on a file system without them.
func extended(in, out int) error {
	size, err := unix.Flistxattr(in, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(in, names); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		value := make([]byte, 64<<10) // the maximum of the kernel: XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(in, name, value)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(out, name, value[:n], 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
