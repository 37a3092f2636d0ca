package bolt

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// space is what the store knows of the room that it takes and has.
type space struct {
	// file is the bbolt file once more, for reading its freelist.
	file *os.File
	// inFile is how many bytes of the file hold something. Free pages are used again, and the file never shrinks.
	inFile atomic.Int64
	// full says that the disk refused the last write.
	full atomic.Bool
	// reclaim says that something was given up whose space is needed.
	reclaim atomic.Bool
	// told is the writer's: it said that the quota is exceeded.
	told bool
}

// measure finds out how much of the file is in use. No transaction may be writing.
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

// image is the file for reading behind bbolt's back.
func (s *Store) image() (format.Image, error) {
	info, err := s.space.file.Stat()
	if err != nil {
		return format.Image{}, err
	}
	return format.Image{File: s.space.file, Size: info.Size()}, nil
}

// judgeQuota says whether writes must be refused, and logs when that changes. It is the writer's.
func (s *Store) judgeQuota() bool {
	over := s.overQuota()
	if over != s.space.told {
		s.space.told = over
		args := []any{"component", "datastore", "used", s.used(), "quota", s.options.QuotaBytes}
		if over {
			slog.Warn("datastore is over its quota, writes are refused", args...)
		} else {
			slog.Info("datastore is within its quota again", args...)
		}
	}
	return over
}

// used is what the file and the layers hold, in bytes.
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

// NoSpace says whether writes are refused because the quota is exceeded or the disk is full. It ends by itself.
func (s *Store) NoSpace() bool { return s.space.full.Load() || s.overQuota() }

// reclaimSpace has what was given up over the quota removed from the file now, not with the next full layer, which will not
// come while writes are refused. It is the writer's.
func (s *Store) reclaimSpace() {
	if !s.space.reclaim.Load() || s.pending != nil && !s.pending.isDone() {
		return
	}
	if err := s.awaitCheckpoint(); err != nil {
		return // no room, or failed, which the next write is told
	}
	if s.freeze(false) == nil {
		s.space.reclaim.Store(false)
	}
}

// remindWriter is the checkpointer's, when it has time again.
func (s *Store) remindWriter() {
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

// noSpace says why a write is refused.
func noSpace(err error) error {
	if errors.Is(err, ErrNoSpace) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoSpace, err)
}
