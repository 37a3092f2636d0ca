package logging

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
)

const (
	historyFile = "mote.log"
	olderFile   = "mote.log.1"
	// historySize is the maximum size of each of the two files. They are usually in a tmpfs and
	// cost memory: at level info a start writes some 24 KB and a quiet day next to nothing.
	historySize = 1 << 20
	// earlySize is the number of bytes that are kept until Open.
	earlySize = 64 << 10
)

// History keeps the newest records in two files of a directory, one JSON document per line, for
// Read. The directory should be in memory: each line changes a file, which wears out flash, and the
// records need not survive a reboot. To keep records longer, keep the output that Setup writes to
// w. Before Open, records wait in memory.
type History struct {
	mu    sync.Mutex // guards the fields below
	dir   string
	file  *os.File
	size  int64
	early []byte
}

// Open begins to write in dir, which it creates for root alone. Records follow those of earlier
// processes. The output of a crash of this process goes there too.
func (h *History) Open(dir string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the log's directory: %w", err)
	}
	h.dir = dir
	if err := h.open(); err != nil {
		return err
	}
	early := h.early
	h.early = nil
	_, err := h.write(early)
	return err
}

func (h *History) open() error {
	file, err := os.OpenFile(filepath.Join(h.dir, historyFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	info, err := file.Stat()
	if err == nil {
		err = debug.SetCrashOutput(file, debug.CrashOptions{})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open the log: %w", err), file.Close())
	}
	h.file, h.size = file, info.Size()
	return nil
}

// Write implements io.Writer. p is one or more whole records.
func (h *History) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dir == "" {
		if len(h.early)+len(p) <= earlySize {
			h.early = append(h.early, p...)
		}
		return len(p), nil
	}
	return h.write(p)
}

func (h *History) write(p []byte) (int, error) {
	if h.file == nil || h.size > 0 && h.size+int64(len(p)) > historySize {
		if err := h.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := h.file.Write(p)
	h.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("write the log: %w", err)
	}
	return n, nil
}

// rotate makes the current file the older one, in place of the previous older one.
func (h *History) rotate() error {
	if h.file != nil {
		err := errors.Join(h.file.Close(), os.Rename(filepath.Join(h.dir, historyFile), filepath.Join(h.dir, olderFile)))
		h.file = nil
		if err != nil {
			return fmt.Errorf("begin a new log: %w", err)
		}
	}
	return h.open()
}

// Close ends the history. Later records are not written.
func (h *History) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dir = ""
	if h.file == nil {
		return nil
	}
	err := errors.Join(debug.SetCrashOutput(nil, debug.CrashOptions{}), h.file.Close())
	h.file = nil
	return err
}
