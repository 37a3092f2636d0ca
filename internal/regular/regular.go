// Package regular opens files that people put where mote looks: regular files only, of a bounded size, and without waiting.
//
// A FIFO, a socket, a device or a directory under a file's name is refused at once. Links are followed. Functions may be called
// from any goroutine.
package regular

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotRegular is the cause when a path leads to a FIFO, a socket, a device or a directory.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge is the cause when a file has more bytes than its limit.
	ErrTooLarge = errors.New("the file is too large")
)

// Open opens path for reading. It never blocks on what path leads to, and opens no device: opening some of them has effects of
// its own.
func Open(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, asOpen(path, err)
	}
	if err := check(path, info); err != nil {
		return nil, err
	}
	// Path may lead to something else by now: O_NONBLOCK returns from a FIFO without a writer, and from a file with a lease.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if info, err = file.Stat(); err == nil {
		err = check(path, info)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// asOpen returns the error of looking at path as that of opening it, which is what the caller asked for.
func asOpen(path string, err error) error {
	var failed *fs.PathError
	if errors.As(err, &failed) {
		return &fs.PathError{Op: "open", Path: path, Err: failed.Err}
	}
	return err
}

// ReadFile returns the contents of path, which may have limit bytes at most.
func ReadFile(path string, limit int64) ([]byte, error) {
	file, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return Read(file, limit)
}

// Read returns what is left of file, which may be limit bytes at most. Files of /proc and files that grow have more than
// their size says.
func Read(file *os.File, limit int64) ([]byte, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, tooLarge(file.Name(), limit)
	}
	var data bytes.Buffer
	data.Grow(int(info.Size()) + bytes.MinRead)
	if _, err := data.ReadFrom(io.LimitReader(file, limit+1)); err != nil {
		return nil, err
	}
	if int64(data.Len()) > limit {
		return nil, tooLarge(file.Name(), limit)
	}
	return data.Bytes(), nil
}

func tooLarge(path string, limit int64) error {
	return &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w: at most %d bytes are read", ErrTooLarge, limit)}
}

func check(path string, info fs.FileInfo) error {
	if info.Mode().IsRegular() {
		return nil
	}
	return &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("%w but %s", ErrNotRegular, kind(info.Mode()))}
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "of type " + mode.Type().String()
}
