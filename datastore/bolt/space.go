package bolt

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// space is the space that the store takes, and whether there is any left.
type space struct {
	// file is the bbolt file, for reading its freelist.
	file *os.File
	// inFile is the number of bytes of the file that are in use. Free pages are used again, and the
	// file never shrinks.
	inFile atomic.Int64
	// diskFull is true if the disk refused the last write.
	diskFull atomic.Bool
	// reclaim is true if data was deleted or compacted and its space is needed.
	reclaim atomic.Bool
	// overLogged is true if the log has a line that the quota is exceeded. Writer goroutine only.
	overLogged bool
}

// measure computes how much of the file is in use. No transaction may be writing.
func (s *Store) measure() error {
	i, err := s.image()
	if err != nil {
		return err
	}
	roots, err := i.Commits()
	if err != nil {
		return err
	}
	free, err := i.Tree(roots[0]).FreePages()
	if err != nil {
		return err
	}
	s.space.inFile.Store(int64(roots[0].Pages-min(free, roots[0].Pages)) * format.PageSize)
	return nil
}

// image returns the file for reading behind bbolt's back.
func (s *Store) image() (format.Image, error) {
	info, err := s.space.file.Stat()
	if err != nil {
		return format.Image{}, err
	}
	return format.Image{File: s.space.file, Size: info.Size()}, nil
}

// checkQuota reports whether writes must be refused, and logs each change. Writer goroutine only.
func (s *Store) checkQuota() bool {
	over := s.overQuota()
	if over != s.space.overLogged {
		s.space.overLogged = over
		args := []any{"component", "datastore", "used", s.used(), "quota", s.options.QuotaBytes}
		if over {
			slog.Warn("datastore is over its quota, writes are refused", args...)
		} else {
			slog.Info("datastore is within its quota again", args...)
		}
	}
	return over
}

// used returns how many bytes the file and the layers hold.
func (s *Store) used() int64 {
	s.mu.RLock()
	layers := s.layers
	s.mu.RUnlock()
	used := s.space.inFile.Load()
	for _, l := range layers {
		used += int64(l.size())
	}
	return used
}

func (s *Store) overQuota() bool { return s.used() > s.options.QuotaBytes }

// NoSpace reports whether writes are refused because the quota is exceeded or the disk is full.
// Either ends by itself.
func (s *Store) NoSpace() bool { return s.space.diskFull.Load() || s.overQuota() }

// reclaimSpace removes data from the file at once that was deleted or compacted over the quota. The
// next full layer would do it, but there will be none while writes are refused. Writer goroutine
// only.
func (s *Store) reclaimSpace() {
	if !s.space.reclaim.Load() || s.pending != nil && !s.pending.isDone() {
		return
	}
	if err := s.awaitCheckpoint(); err != nil {
		return // no room, or failed; the next write gets the error
	}
	if s.freeze(false) == nil {
		s.space.reclaim.Store(false)
	}
}

// wakeWriter lets the writer reclaim space, now that no checkpoint is under way. Checkpointer
// goroutine only.
func (s *Store) wakeWriter() {
	if !s.space.reclaim.Load() {
		return
	}
	nothing := &request{apply: func(*writeTx) (answer, error) { return answer{}, nil }, done: make(chan struct{})}
	select {
	case s.requests <- nothing:
	default: // there are others
	}
}

func (cp *checkpoint) isDone() bool {
	select {
	case <-cp.done:
		return true
	default:
		return false
	}
}

// noSpace returns an ErrNoSpace with its cause.
func noSpace(err error) error {
	if errors.Is(err, ErrNoSpace) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoSpace, err)
}
