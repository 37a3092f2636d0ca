package bolt

import "context"

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
		return v.rows(ctx, q.Key, q.End, at, func(f found) error {
			list.Count++
			if q.CountOnly || q.Limit > 0 && list.Count > q.Limit {
				return nil
			}
			kv, err := v.kv(f, q.KeysOnly)
			list.KVs = append(list.KVs, kv)
			return err
		})
	})
	if err != nil {
		list.KVs = nil
	}
	return list, err
}

// kv returns a version of a key, with or without its value.
func (v *view) kv(f found, keyOnly bool) (*KV, error) {
	h, err := f.header()
	if err != nil {
		return nil, err
	}
	if keyOnly {
		return newKV(f.name(), h), nil
	}
	rec, err := v.recordOf(f.name(), h)
	if err != nil {
		return nil, err
	}
	return rec.kv(), nil
}
