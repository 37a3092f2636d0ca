package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// sizes are in bytes; the compressed ones are of the mote file and 0 in quick runs.
type sizes struct {
	mote, xz, zstd int64
	// stock is all stock programs, per-pod programs included, which are in the mote file too.
	stock int64
}

func (o options) readSizes(ctx context.Context, payload string) (sizes, error) {
	var s sizes
	info, err := os.Stat(o.mote)
	if err != nil {
		return s, err
	}
	s.mote = info.Size()
	if o.stock != "" {
		for _, folder := range []string{o.stock, payload} {
			size, err := folderSize(folder)
			if err != nil {
				return s, err
			}
			s.stock += size
		}
	}
	if o.quick {
		return s, nil
	}
	if s.xz, err = compressedSize(ctx, o.mote, "xz", "-6", "-T0", "-c"); err != nil {
		return s, err
	}
	s.zstd, err = compressedSize(ctx, o.mote, "zstd", "-19", "-T0", "-q", "-c")
	return s, err
}

func folderSize(folder string) (int64, error) {
	var total int64
	err := filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}

// counter counts the bytes written to it.
type counter int64

func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

func compressedSize(ctx context.Context, path string, command ...string) (int64, error) {
	var size counter
	cmd := exec.CommandContext(ctx, command[0], append(command[1:], path)...)
	cmd.Stdout = &size
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("compress %s with %s: %w", path, command[0], err)
	}
	return int64(size), nil
}
