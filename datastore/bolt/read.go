package bolt

import (
	"bytes"
	"context"
)

// Query selects keys at one moment.
type Query struct {
	// Key and End are the range [Key, End). An empty End means Key alone, "\x00" means no end.
	Key, End string
	// Revision is the moment; 0 is now.
	Revision int64
	// Limit is the largest number of keys to return; 0 means all.
	Limit int64
	// KeysOnly leaves the values out, CountOnly the keys too.
	KeysOnly, CountOnly bool
}

// List is the answer to a Query.
type List struct {
	// Revision is the store's current one.
	Revision int64
	// KVs are in the order of their keys. Scan leaves them out.
	KVs []*KV
	// Count is the number of keys in the range, including those beyond the limit.
	Count int64
}

// Range returns the selected keys. To read a list in pages, ask for the revision of the first page,
// and begin each page behind the last key of the page before. Revisions that are gone are refused
// with ErrCompacted, those to come with ErrFutureRevision.
func (s *Store) Range(ctx context.Context, q Query) (List, error) {
	var kvs []*KV
	list, err := s.Scan(ctx, q, func(kv *KV) error {
		own := *kv
		own.Value = bytes.Clone(kv.Value)
		kvs = append(kvs, &own)
		return nil
	})
	if err == nil {
		list.KVs = kvs
	}
	return list, err
}

// Scan calls fn with the selected keys. A KV and its value are valid during the call. All calls are
// of one moment, whose pages the file keeps meanwhile: fn must not wait.
func (s *Store) Scan(ctx context.Context, q Query, fn func(*KV) error) (List, error) {
	var list List
	err := s.view(func(v *view) error {
		list.Revision = v.revision
		at := q.Revision
		switch {
		case at > v.revision:
			return ErrFutureRevision
		case at == 0:
			at = v.revision
		case at < v.compacted:
			return ErrCompacted
		}
		rows := v.scan(ctx, q.Key, q.End, at)
		for !q.CountOnly && (q.Limit == 0 || list.Count < q.Limit) {
			f, ok, err := rows.next()
			if err != nil {
				return err
			}
			if !ok {
				return nil
			}
			list.Count++
			if err := v.emit(f, q.KeysOnly, fn); err != nil {
				return err
			}
		}
		rest, err := rows.count()
		list.Count += rest
		return err
	})
	return list, err
}

// emit calls fn with a version of a key, with or without its value.
func (v *view) emit(f scanRow, keyOnly bool, fn func(*KV) error) error {
	h, err := f.header()
	if err != nil {
		return err
	}
	kv := newKV(f.name(), h)
	if !keyOnly {
		rec, err := v.recordOf(kv.Key, h)
		if err != nil {
			return err
		}
		kv.Value = rec.Value
	}
	return fn(kv)
}
