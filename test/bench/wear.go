package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// wear uses the kernel's tracing of ext4 to find out which files of a trial's own disk are written.
type wear struct {
	disk, tracing, instance string
}

// wearEvents report the pages of a file that went to the disk, and the blocks of a commit of the
// journal.
const (
	pagesEvent   = "ext4/ext4_writepages_result"
	journalEvent = "jbd2/jbd2_run_stats"
	journalName  = "journal"
	// wearBuffer is the size of the trace buffer on each CPU in KiB; an hour of an idle cluster
	// needs a tenth.
	wearBuffer = "4096"
)

// startWear starts the tracing. tracing is a directory on which to mount tracefs.
func startWear(disk, tracing, name string) (*wear, error) {
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", disk, err)
	}
	if err := os.MkdirAll(tracing, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount tracefs: %w", err)
	}
	w := &wear{disk: disk, tracing: tracing, instance: filepath.Join(tracing, "instances", name)}
	err := os.Mkdir(w.instance, 0o755)
	// The kernel's own form of a device number, which is not that of stat.
	filter := fmt.Sprintf("dev == %d", unix.Major(st.Dev)<<20|unix.Minor(st.Dev))
	for _, setting := range [][2]string{
		{"buffer_size_kb", wearBuffer},
		{"events/" + pagesEvent + "/filter", filter}, {"events/" + pagesEvent + "/enable", "1"},
		{"events/" + journalEvent + "/filter", filter}, {"events/" + journalEvent + "/enable", "1"},
	} {
		if err == nil {
			err = os.WriteFile(filepath.Join(w.instance, setting[0]), []byte(setting[1]), 0)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace %s: %w", disk, err), w.stop())
	}
	return w, nil
}

func syncDisk(disk string) error {
	folder, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer folder.Close()
	if err := unix.Syncfs(int(folder.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", disk, err)
	}
	return nil
}

// stop ends the tracing.
func (w *wear) stop() error {
	err := os.Remove(w.instance)
	return errors.Join(err, unix.Unmount(w.tracing, 0), os.Remove(w.tracing))
}

// written returns the bytes that each file got since the start, by its path on the disk.
func (w *wear) written() (map[string]int64, error) {
	trace, err := os.Open(filepath.Join(w.instance, "trace"))
	if err != nil {
		return nil, err
	}
	defer trace.Close()
	inodes, journal, err := parseWear(trace)
	if err != nil {
		return nil, err
	}
	names, err := w.names()
	if err != nil {
		return nil, err
	}
	files := map[string]int64{journalName: journal}
	for inode, n := range inodes {
		name := names[inode]
		if name == "" {
			name = "files that are gone"
		}
		files[name] += n
	}
	return files, nil
}

// parseWear sums the bytes of each inode, and of the journal.
func parseWear(trace io.Reader) (inodes map[uint64]int64, journal int64, err error) {
	const pageSize = 4096
	inodes = map[uint64]int64{}
	lines := bufio.NewScanner(trace)
	for lines.Scan() {
		var n int64
		if _, rest, ok := strings.Cut(lines.Text(), "ext4_writepages_result: "); ok {
			var major, minor, ret int
			var inode uint64
			if _, err := fmt.Sscanf(rest, "dev %d,%d ino %d ret %d pages_written %d", &major, &minor, &inode, &ret, &n); err != nil {
				return nil, 0, fmt.Errorf("read trace line %q: %w", rest, err)
			}
			inodes[inode] += n * pageSize
		} else if _, rest, ok := strings.Cut(lines.Text(), "blocks_logged "); ok {
			if _, err := fmt.Sscan(rest, &n); err != nil {
				return nil, 0, fmt.Errorf("read trace line %q: %w", rest, err)
			}
			journal += n * pageSize
		}
	}
	return inodes, journal, lines.Err()
}

// names returns the files of the disk by inode.
func (w *wear) names() (map[uint64]string, error) {
	names := map[uint64]string{}
	err := filepath.WalkDir(w.disk, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			names[info.Sys().(*syscall.Stat_t).Ino], err = filepath.Rel(w.disk, path)
		}
		return err
	})
	return names, err
}
