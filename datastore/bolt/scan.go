package bolt

import (
	"context"
	"encoding/binary"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// scanRow is a row that a scan found, in memory or in the file. A row of the file is decoded when
// its header is asked for, since most rows are only counted; it is valid while the view is open.
type scanRow struct {
	layerRow  *row
	key, bits []byte
}

func (f scanRow) name() string {
	if f.layerRow != nil {
		return f.layerRow.key
	}
	return string(f.key)
}

func (f scanRow) header() (format.Header, error) {
	if f.layerRow != nil {
		return f.layerRow.Header, nil
	}
	return format.DecodeHeader(f.key, f.bits)
}

// mod returns the part of the header that every row is asked for.
func (f scanRow) mod() (mod int64, deleted bool, err error) {
	if f.layerRow != nil {
		return f.layerRow.Mod, f.layerRow.Deleted, nil
	}
	if len(f.bits) > 0 {
		if n, size := binary.Uvarint(f.bits[1:]); size > 0 {
			return int64(n), f.bits[0]&format.FlagDeleted != 0, nil
		}
	}
	h, err := f.header() // the header has the error
	return h.Mod, h.Deleted, err
}

// scan goes through the keys of a range as they were at a revision, in order.
type scan struct {
	ctx  context.Context
	view *view
	end  string
	at   int64
	// cursor is at key and bits, the file's next row in the range; a nil key is none.
	cursor    *bbolt.Cursor
	key, bits []byte
	// layerRows are the rows of the range that the layers have.
	layerRows []row
	passed    int
}

// scanCheck is the number of keys that a scan passes between two checks of its context.
const scanCheck = 1024

func (v *view) scan(ctx context.Context, key, end string, at int64) *scan {
	s := &scan{ctx: ctx, view: v, end: end, at: at, layerRows: v.layerRows(key, end)}
	if end == "" && len(s.layerRows) > 0 {
		return s
	}
	s.cursor = v.keys.Cursor()
	s.key, s.bits = s.cursor.Seek([]byte(key))
	if end == "" && string(s.key) != key {
		s.key = nil
	}
	s.bound()
	return s
}

// bound ends the file's part where the range ends.
func (s *scan) bound() {
	if s.end != "" && s.end != allKeys && string(s.key) >= s.end {
		s.key = nil
	}
}

// nextLatest returns the latest row of the next key.
func (s *scan) nextLatest() (f scanRow, ok bool, err error) {
	if s.passed++; s.passed%scanCheck == 0 && s.ctx.Err() != nil {
		return f, false, s.ctx.Err()
	}
	if len(s.layerRows) > 0 && (s.key == nil || s.layerRows[0].key <= string(s.key)) {
		f.layerRow = &s.layerRows[0]
		if s.layerRows[0].key == string(s.key) {
			s.skip()
		}
		s.layerRows = s.layerRows[1:]
		return f, true, nil
	}
	if s.key == nil {
		return f, false, nil
	}
	f.key, f.bits = s.key, s.bits
	s.skip()
	return f, true, nil
}

// skip passes the file's next row.
func (s *scan) skip() {
	if s.end == "" {
		s.key = nil
		return
	}
	s.key, s.bits = s.cursor.Next()
	s.bound()
}

// next returns the next key that existed at the revision.
func (s *scan) next() (f scanRow, ok bool, err error) {
	for {
		if f, ok, err = s.nextLatest(); !ok || err != nil {
			return f, false, err
		}
		mod, deleted, err := f.mod()
		if err == nil && mod > s.at {
			f, deleted, err = s.versionBefore(f)
		}
		if !deleted || err != nil {
			return f, err == nil, err
		}
	}
}

// versionBefore returns the version of f's key that was valid at the scan's revision, and whether
// that is a deletion.
func (s *scan) versionBefore(f scanRow) (scanRow, bool, error) {
	h, err := f.header()
	if err == nil {
		h, err = s.view.versionAt(h, s.at)
	}
	return scanRow{layerRow: &row{f.name(), h}}, h.Deleted, err
}

// count returns how many keys are left.
func (s *scan) count() (n int64, err error) {
	each := s.end == "" || s.at < format.LastRevision(s.view.meta)
	for len(s.layerRows) > 0 || each {
		_, ok, err := s.next()
		if !ok || err != nil {
			return n, err
		}
		n++
	}
	return s.countFile(n)
}

// countFile adds the keys that only the file has, where each row is of the version that is wanted.
// It finds the place where the range ends once: comparing each key with the end would take as long
// as all the rest.
func (s *scan) countFile(n int64) (int64, error) {
	if s.key == nil {
		return n, nil
	}
	var stop []byte
	if s.end != allKeys {
		stop, _ = s.view.keys.Cursor().Seek([]byte(s.end))
	}
	for k, b := s.key, s.bits; k != nil && (stop == nil || &k[0] != &stop[0]); k, b = s.cursor.Next() {
		if s.passed++; s.passed%scanCheck == 0 && s.ctx.Err() != nil {
			return n, s.ctx.Err()
		}
		if len(b) == 0 {
			_, err := format.DecodeHeader(k, b)
			return n, err
		}
		if b[0]&format.FlagDeleted == 0 {
			n++
		}
	}
	s.key = nil
	return n, nil
}

// layerRows returns the rows of a range that the layers have, in order.
func (v *view) layerRows(key, end string) []row {
	if end == "" {
		return v.layerRow(key)
	}
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

// layerRow returns the row of a key that the layers have, if any.
func (v *view) layerRow(key string) []row {
	for _, l := range v.layers {
		if h, ok := l.latest(key); ok {
			return []row{{key, h}}
		}
	}
	return nil
}
