package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// view is the store at one moment: the layers in memory and, below them, the file. What is in both is the
// same. It must be short: pages of the file that it can see are not reused.
type view struct {
	tx              *bbolt.Tx
	meta, log, keys *bbolt.Bucket
	// records and index find single entries of log and keys. A cursor that is kept has its memory already.
	records, index *bbolt.Cursor
	wanted         [8]byte
	// layers begin with the newest. It may have records above revision.
	layers              []*layer
	revision, compacted int64
}

// view calls fn with the store as it is.
func (s *Store) view(fn func(*view) error) error {
	v, err := s.open()
	if err != nil {
		return err
	}
	err = withFaults(func() error { return fn(v) })
	return errors.Join(s.damage(err), v.tx.Rollback())
}

// withFaults returns as errors what bbolt does when a page makes no sense to it, and what the kernel does when a page cannot be read.
func withFaults(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			slog.Error("page of the datastore cannot be used", "component", "datastore", "cause", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return fn()
}

// damage remembers that damage was met: the next start looks for all of it, and repairs it.
func (s *Store) damage(err error) error {
	if errors.Is(err, ErrDamaged) && s.suspect.CompareAndSwap(false, true) {
		slog.Error("datastore is damaged, what is hit is not answered; a restart repairs it or says what to do", "component", "datastore", "path", s.path, "error", err)
	}
	return err
}

// Damaged says that something was met that is not as it was written. What is hit is not answered, all else is; the next Open repairs it.
func (s *Store) Damaged() bool { return s.suspect.Load() }

// open returns a view, whose transaction must be ended.
func (s *Store) open() (*view, error) {
	// A checkpoint takes its layer away, under this lock, only when the file has it: a view has it at
	// least once.
	s.mu.RLock()
	defer s.mu.RUnlock()
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, closedError(err)
	}
	v := &view{tx: tx, layers: s.layers, revision: s.revision.Load(), compacted: s.compacted.Load()}
	err = withFaults(func() error {
		v.meta, v.log, v.keys = tx.Bucket(bucketMeta()), tx.Bucket(bucketLog()), tx.Bucket(bucketKeys())
		v.records, v.index = v.log.Cursor(), v.keys.Cursor()
		return nil
	})
	if err != nil {
		return nil, errors.Join(s.damage(err), tx.Rollback())
	}
	return v, nil
}

// closedError translates bbolt's word for a store that has been closed.
func closedError(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// find returns the record of a revision, or nil.
func (v *view) find(revision int64) (*record, error) {
	for _, l := range v.layers {
		if rec := l.record(revision); rec != nil {
			return rec, nil
		}
	}
	binary.BigEndian.PutUint64(v.wanted[:], uint64(revision))
	k, b := v.records.Seek(v.wanted[:])
	if !bytes.Equal(k, v.wanted[:]) {
		return nil, nil
	}
	rec, err := decodeStored(k, b)
	return &rec, err
}

// record returns the record of a revision, which must be there.
func (v *view) record(revision int64) (*record, error) {
	rec, err := v.find(revision)
	if rec == nil && err == nil {
		err = fmt.Errorf("%w: the record of revision %d is missing", ErrDamaged, revision)
	}
	return rec, err
}

// latest returns the last record of key, a deletion included, or nil.
func (v *view) latest(key string) (*record, error) {
	for _, l := range v.layers {
		if h, ok := l.latest(key); ok {
			return v.record(h.mod)
		}
	}
	k, b := v.index.Seek([]byte(key))
	if string(k) != key {
		return nil, nil
	}
	h, err := decodeHeader(k, b)
	if err != nil {
		return nil, err
	}
	return v.recordOf(key, h)
}

// recordOf returns the record that an index row is of.
func (v *view) recordOf(key string, h header) (*record, error) {
	rec, err := v.record(h.mod)
	if err == nil && (string(rec.key) != key || rec.header != h) {
		err = fmt.Errorf("%w: index row of key %q differs from record %d", ErrDamaged, key, h.mod)
	}
	return rec, err
}

// versionAt walks back from the latest version of a key to the one that was valid at revision. Where there
// was none, it returns a deletion.
func (v *view) versionAt(h header, revision int64) (header, error) {
	for h.mod > revision {
		rec, err := v.record(h.mod)
		if err != nil {
			return header{}, err
		}
		if rec.prev == 0 {
			return header{deleted: true}, nil
		}
		before, err := v.find(rec.prev)
		if err != nil {
			return header{}, err
		}
		if before == nil && rec.prev <= v.compacted {
			// Compaction removes deletions; of living keys it leaves the last version.
			return header{deleted: true}, nil
		}
		if before == nil {
			return header{}, fmt.Errorf("%w: record %d follows record %d, which is gone", ErrDamaged, h.mod, rec.prev)
		}
		h = before.header
	}
	return h, nil
}
