package bolt

import (
	"bytes"
	"context"
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
	b := v.log.Get(revisionKey(revision))
	if b == nil {
		return nil, nil
	}
	rec, err := decodeStored(revisionKey(revision), b)
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
	b := v.keys.Get([]byte(key))
	if b == nil {
		return nil, nil
	}
	h, err := decodeHeader([]byte(key), b)
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

// scanCheck is how many keys a scan passes between looks at its context.
const scanCheck = 1024

// found is a row of a scan, from memory or from the file; what is from the file is decoded when it is asked
// for, since most rows are only counted, and valid while the view is open.
type found struct {
	memory    *row
	key, bits []byte
}

func (f found) name() string {
	if f.memory != nil {
		return f.memory.key
	}
	return string(f.key)
}

func (f found) header() (header, error) {
	if f.memory != nil {
		return f.memory.header, nil
	}
	return decodeHeader(f.key, f.bits)
}

// mod is the part of the header that every row is asked for.
func (f found) mod() (mod int64, deleted bool, err error) {
	if f.memory != nil {
		return f.memory.mod, f.memory.deleted, nil
	}
	if len(f.bits) > 0 {
		if n, size := binary.Uvarint(f.bits[1:]); size > 0 {
			return int64(n), f.bits[0]&flagDeleted != 0, nil
		}
	}
	h, err := f.header() // which says what is wrong
	return h.mod, h.deleted, err
}

// rows calls fn with the version of each key of a range that was valid at revision.
func (v *view) rows(ctx context.Context, key, end string, revision int64, fn func(found) error) error {
	passed := 0
	return v.merge(key, end, func(f found) error {
		if passed++; passed%scanCheck == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		mod, deleted, err := f.mod()
		if err != nil {
			return err
		}
		if mod > revision {
			h, err := f.header()
			if err == nil {
				h, err = v.versionAt(h, revision)
			}
			if err != nil {
				return err
			}
			f, deleted = found{memory: &row{f.name(), h}}, h.deleted
		}
		if deleted {
			return nil
		}
		return fn(f)
	})
}

// merge calls fn with the latest row of each key of a range, in order.
func (v *view) merge(key, end string, fn func(found) error) error {
	if end == "" {
		return v.one(key, fn)
	}
	memory := v.memory(key, end)
	c := v.keys.Cursor()
	limit := []byte(end)
	for k, b := c.Seek([]byte(key)); k != nil && (end == allKeys || bytes.Compare(k, limit) < 0); k, b = c.Next() {
		for len(memory) > 0 && memory[0].key < string(k) {
			if err := fn(found{memory: &memory[0]}); err != nil {
				return err
			}
			memory = memory[1:]
		}
		if len(memory) > 0 && memory[0].key == string(k) {
			continue // it comes next
		}
		if err := fn(found{key: k, bits: b}); err != nil {
			return err
		}
	}
	for i := range memory {
		if err := fn(found{memory: &memory[i]}); err != nil {
			return err
		}
	}
	return nil
}

// one calls fn with the latest row of a key, if it has one.
func (v *view) one(key string, fn func(found) error) error {
	for _, l := range v.layers {
		if h, ok := l.latest(key); ok {
			return fn(found{memory: &row{key, h}})
		}
	}
	if b := v.keys.Get([]byte(key)); b != nil {
		return fn(found{key: []byte(key), bits: b})
	}
	return nil
}

// memory returns what the layers have of a range, in order.
func (v *view) memory(key, end string) []row {
	newest := v.layers[0].rows(key, end)
	if len(v.layers) == 1 {
		return newest
	}
	older := v.layers[1].rows(key, end)
	merged := make([]row, 0, len(newest)+len(older))
	for len(newest) > 0 && len(older) > 0 {
		switch {
		case older[0].key < newest[0].key:
			merged, older = append(merged, older[0]), older[1:]
		case older[0].key == newest[0].key:
			older = older[1:]
		default:
			merged, newest = append(merged, newest[0]), newest[1:]
		}
	}
	return append(append(merged, newest...), older...)
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
