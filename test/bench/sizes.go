package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// sizes are in bytes. packed is the shipped form (internal/pack), 0 if that was not built.
type sizes struct {
	mote, packed int64
	// stock is the size of all stock programs. It includes the per-pod programs, which are in the
	// mote file too.
	stock int64
}

func (o options) readSizes(payload string) (sizes, error) {
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
	packed, err := os.Stat(o.mote + "-packed")
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.packed = packed.Size()
	return s, nil
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
