package bolt

import (
	"context"
	"errors"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Query selects keys at one moment.
type Query struct {
	// Key and End are the range [Key, End). An empty End means Key alone, "\x00" no end.
	Key, End string
	// Revision is the moment; 0 is now.
	Revision int64
	// Limit is how many keys to return at the most; 0 is all.
	Limit int64
	// KeysOnly leaves the values out, CountOnly the keys too.
	KeysOnly, CountOnly bool
}

// List is the answer to a Query.
type List struct {
	// Revision is the store's current one.
	Revision int64
	// KVs are in the order of their keys.
	KVs []*KV
	// Count is how many keys the range has, also those beyond the limit.
	Count int64
}

// Range returns the selected keys. Pages of one list use the first page's revision and begin behind the
// last key of the page before.
func (s *Store) Range(ctx context.Context, q Query) (List, error) {
	var list List
	var err error
	list.Revision, err = s.scan(ctx, q, func(r *reader, key []byte, h header) error {
		list.Count++
		switch {
		case q.CountOnly || q.Limit > 0 && list.Count > q.Limit:
		case q.KeysOnly:
			list.KVs = append(list.KVs, newKV(string(key), h))
		default:
			rec, err := r.record(h.mod)
			list.KVs = append(list.KVs, rec.kv(false))
			return err
		}
		return nil
	})
	if err != nil {
		list.KVs = nil
	}
	return list, err
}

// scanCheck is how many keys a scan passes between looks at its context.
const scanCheck = 1024

func (s *Store) scan(ctx context.Context, q Query, emit func(*reader, []byte, header) error) (int64, error) {
	var revision int64
	err := s.view(func(tx *bbolt.Tx) error {
		r := newReader(tx)
		revision = r.revision
		if q.Revision > r.revision {
			return ErrFutureRevision
		}
		if q.Revision != 0 && q.Revision < r.compacted {
			return ErrCompacted
		}
		var passed int64
		return r.rows(q.Key, q.End, func(key []byte, h header) error {
			if passed++; passed%scanCheck == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if q.Revision != 0 {
				var err error
				if h, err = r.versionAt(h, q.Revision); err != nil {
					return err
				}
			}
			if h.deleted {
				return nil
			}
			return emit(r, key, h)
		})
	})
	return revision, err
}

// view is a read transaction. It must be short: pages that it can see are not reused.
func (s *Store) view(fn func(*bbolt.Tx) error) error {
	return closedError(s.db.View(fn))
}

// closedError translates bbolt's word for a store that has been closed.
func closedError(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// reader is the file as one transaction sees it.
type reader struct {
	log, keys           *bbolt.Bucket
	revision, compacted int64
}

func newReader(tx *bbolt.Tx) *reader {
	meta := tx.Bucket(bucketMeta())
	return &reader{
		log: tx.Bucket(bucketLog()), keys: tx.Bucket(bucketKeys()),
		revision: getMeta(meta, metaRevision), compacted: getMeta(meta, metaCompacted),
	}
}

// rows calls fn with the latest version of each key of a range.
func (r *reader) rows(key, end string, fn func(key []byte, h header) error) error {
	c := r.keys.Cursor()
	for k, row := c.Seek([]byte(key)); k != nil && inRange(string(k), key, end); k, row = c.Next() {
		h, err := decodeHeader(k, row)
		if err != nil {
			return err
		}
		if err := fn(k, h); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) record(revision int64) (record, error) {
	return decodeRecord(revision, r.log.Get(revisionKey(revision)))
}

// versionAt walks back from the latest version of a key to the one that was valid at revision.
// Where there was none, it returns a deletion.
func (r *reader) versionAt(h header, revision int64) (header, error) {
	for h.mod > revision {
		rec, err := r.record(h.mod)
		if err != nil {
			return header{}, err
		}
		if rec.prev == 0 {
			return header{deleted: true}, nil
		}
		b := r.log.Get(revisionKey(rec.prev))
		if b == nil && rec.prev <= r.compacted {
			// The scrubber removes deletions; of living keys it leaves the last version.
			return header{deleted: true}, nil
		}
		before, err := decodeRecord(rec.prev, b)
		if err != nil {
			return header{}, err
		}
		h = before.header
	}
	return h, nil
}
