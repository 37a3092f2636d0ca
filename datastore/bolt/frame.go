package bolt

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// frame is what the write-ahead log says of one transaction. See ../README.md.
type frame struct {
	revision, compacted int64
	// ceiling is above all revisions that writes without a frame were given, and will be given before the
	// next frame; 0 if there were none since the file was closed.
	ceiling int64
	records []*record
	leases  map[int64]leaseRow
}

func (f frame) encode() []byte { return f.append(nil) }

func (f frame) append(b []byte) []byte {
	size := 64 + 32*len(f.leases)
	for _, rec := range f.records {
		size += 64 + len(rec.key) + len(rec.value)
	}
	b = slices.Grow(b, size)
	for _, n := range [...]int64{f.revision, f.compacted, f.ceiling, int64(len(f.records))} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for _, rec := range f.records {
		b = binary.AppendUvarint(b, uint64(recordSize(rec)))
		if rec.encoded != nil {
			b = append(b, rec.encoded[storedSum:]...)
		} else {
			b = appendRecord(b, rec)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(f.leases)))
	for id, l := range f.leases {
		b = binary.AppendUvarint(b, uint64(id))
		b = append(b, encodeLease(l)...)
	}
	return b
}

var errDamagedFrame = fmt.Errorf("%w: frame of the write-ahead log", ErrDamaged)

// decodeFrame copies what it needs of b.
func decodeFrame(b []byte) (frame, error) {
	d := decoder{rest: b}
	f := frame{revision: d.int(), compacted: d.int(), ceiling: d.int(), leases: map[int64]leaseRow{}}
	for n := d.int(); n > 0 && !d.bad; n-- {
		raw := d.bytes()
		if d.bad {
			break
		}
		rec, err := decodeRecord(append([]byte{}, raw...))
		if err != nil {
			return f, err
		}
		rec.heap = true
		f.records = append(f.records, &rec)
	}
	for n := d.int(); n > 0 && !d.bad; n-- {
		id := d.int()
		f.leases[id] = leaseRow{ttl: d.int(), ends: d.int()}
	}
	if d.bad || len(d.rest) > 0 {
		return f, errDamagedFrame
	}
	return f, nil
}
