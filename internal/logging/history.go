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
	// historySize is how big one of the two files gets. They usually lie in a tmpfs and cost memory: at level info a start
	// writes some 24 KB and a quiet day next to nothing.
	historySize = 1 << 20
	// earlySize is how much is kept until Open.
	earlySize = 64 << 10
)

// History keeps the newest records in two files of a directory, one JSON document a line, for Read. The directory should
// be in memory: what it holds is written anew at each line, which flash does not like, and need not outlive the machine's boot.
// Who wants it for longer keeps what Setup writes to w. Before Open, records wait in memory.
type History struct {
	mu    sync.Mutex // guards what follows
	dir   string
	file  *os.File
	size  int64
	early []byte
}

// Open begins to write in dir, which it makes for root alone, after what former processes wrote there. A crash of this process
// is written there too.
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

// Write implements io.Writer. p is one record or several whole ones.
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

// rotate makes the file the older one, in the place of the one before.
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

// Close ends it. Records that come later wait in vain.
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
