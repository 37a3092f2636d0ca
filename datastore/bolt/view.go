package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// view is the store at one moment: the layers in memory and, below them, the file. Data in both is
// the same. Keep it open only for a short time: pages of the file that it can see are not reused.
type view struct {
	tx              *bbolt.Tx
	meta, log, keys *bbolt.Bucket
	// records and index find single entries of log and keys. A cursor that is kept has its memory
	// already.
	records, index *bbolt.Cursor
	wanted         [8]byte
	// layers begin with the newest, which may have records above revision.
	layers              []*layer
	revision, compacted int64
}

// view calls fn with the store as it is now.
func (s *Store) view(fn func(*view) error) error {
	v, err := s.open()
	if err != nil {
		return err
	}
	err = format.CatchFaults(func() error { return fn(v) })
	return errors.Join(s.noteDamage(err), v.tx.Rollback())
}

// noteDamage remembers that err is damage, if it is, and returns it: the next start examines the
// whole file and repairs it.
func (s *Store) noteDamage(err error) error {
	if errors.Is(err, format.ErrDamaged) && s.damaged.CompareAndSwap(false, true) {
		slog.Error("datastore is damaged, what is hit is not answered; a restart repairs it or says what to do", "component", "datastore", "path", s.path, "error", err)
	}
	return err
}

// Damaged reports whether a request met data that differs from what was written. Requests that meet
// it are refused, all others are served; the next Open repairs it.
func (s *Store) Damaged() bool { return s.damaged.Load() }

// open returns a view. The caller must end its transaction.
func (s *Store) open() (*view, error) {
	// A checkpoint takes its layer away, under this lock, only when the file has it: a view has it
	// at least once.
	s.mu.RLock()
	defer s.mu.RUnlock()
	tx, err := s.db.Begin(false)
	if err != nil {
		return nil, closedError(err)
	}
	v := &view{tx: tx, layers: s.layers, revision: s.revision.Load(), compacted: s.compacted.Load()}
	err = format.CatchFaults(func() error {
		v.meta, v.log, v.keys = tx.Bucket([]byte(format.MetaBucket)), tx.Bucket([]byte(format.LogBucket)), tx.Bucket([]byte(format.KeysBucket))
		v.records, v.index = v.log.Cursor(), v.keys.Cursor()
		return nil
	})
	if err != nil {
		return nil, errors.Join(s.noteDamage(err), tx.Rollback())
	}
	return v, nil
}

// closedError translates bbolt's error of a database that has been closed.
func closedError(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// find returns the record of a revision, or nil.
func (v *view) find(revision int64) (*format.Record, error) {
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
	rec, err := format.DecodeRecord(k, b)
	return &rec, err
}

// record returns the record of a revision. It is damage if there is none.
func (v *view) record(revision int64) (*format.Record, error) {
	rec, err := v.find(revision)
	if rec == nil && err == nil {
		err = fmt.Errorf("%w: the record of revision %d is missing", format.ErrDamaged, revision)
	}
	return rec, err
}

// latest returns the last record of key, which may be a deletion, or nil.
func (v *view) latest(key string) (*format.Record, error) {
	for _, l := range v.layers {
		if h, ok := l.latest(key); ok {
			return v.record(h.Mod)
		}
	}
	k, b := v.index.Seek([]byte(key))
	if string(k) != key {
		return nil, nil
	}
	h, err := format.DecodeHeader(k, b)
	if err != nil {
		return nil, err
	}
	return v.recordOf(key, h)
}

// recordOf returns the record of an index row. It is damage if they differ.
func (v *view) recordOf(key string, h format.Header) (*format.Record, error) {
	rec, err := v.record(h.Mod)
	if err == nil && (string(rec.Key) != key || rec.Header != h) {
		err = fmt.Errorf("%w: index row of key %q differs from record %d", format.ErrDamaged, key, h.Mod)
	}
	return rec, err
}

// versionAt walks back from the latest version of a key to the one that was valid at revision. If
// there was none, it returns a deletion.
func (v *view) versionAt(h format.Header, revision int64) (format.Header, error) {
	for h.Mod > revision {
		rec, err := v.record(h.Mod)
		if err != nil {
			return format.Header{}, err
		}
		if rec.Prev == 0 {
			return format.Header{Deleted: true}, nil
		}
		before, err := v.find(rec.Prev)
		if err != nil {
			return format.Header{}, err
		}
		if before == nil && rec.Prev <= v.compacted {
			// Compaction removes deletions; of living keys it leaves the last version.
			return format.Header{Deleted: true}, nil
		}
		if before == nil {
			return format.Header{}, fmt.Errorf("%w: record %d follows record %d, which is gone", format.ErrDamaged, h.Mod, rec.Prev)
		}
		h = before.Header
	}
	return h, nil
}
