package format

import (
	"encoding/binary"
	"slices"
)

// Frame is a transaction as the write-ahead log has it: the payload of one of the log's frames.
type Frame struct {
	// Revision and Compacted are the store's after the transaction.
	Revision, Compacted int64
	// Ceiling is above all revisions that writes without a frame were given, or will be given
	// before the next frame; 0 if there were none since the file was closed.
	Ceiling int64
	Records []*Record
	// Leases were granted, renewed or ended, by number.
	Leases map[int64]Lease
}

// Append appends the encoded frame to b.
func (f Frame) Append(b []byte) []byte {
	size := 64 + 32*len(f.Leases)
	for _, rec := range f.Records {
		size += 64 + len(rec.Key) + len(rec.Value)
	}
	b = slices.Grow(b, size)
	for _, n := range [...]int64{f.Revision, f.Compacted, f.Ceiling, int64(len(f.Records))} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for _, rec := range f.Records {
		b = binary.AppendUvarint(b, uint64(recordSize(rec)))
		if rec.encoded != nil {
			b = append(b, rec.encoded[sumSize:]...)
		} else {
			b = appendRecord(b, rec)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(f.Leases)))
	for id, l := range f.Leases {
		b = binary.AppendUvarint(b, uint64(id))
		b = append(b, l.Encode()...)
	}
	return b
}

// DecodeFrame decodes a frame. It copies what it needs of b.
func DecodeFrame(b []byte) (Frame, error) {
	d := decoder{rest: b}
	f := Frame{Revision: d.int(), Compacted: d.int(), Ceiling: d.int(), Leases: map[int64]Lease{}}
	for n := d.int(); n > 0 && !d.damaged; n-- {
		raw := d.bytes()
		if d.damaged {
			break
		}
		rec, err := DecodeUnsummed(append([]byte{}, raw...))
		if err != nil {
			return f, err
		}
		rec.owned = true
		f.Records = append(f.Records, &rec)
	}
	for n := d.int(); n > 0 && !d.damaged; n-- {
		id := d.int()
		f.Leases[id] = Lease{TTL: d.int(), Ends: d.int()}
	}
	if d.damaged || len(d.rest) > 0 {
		return f, Damagef("frame of the write-ahead log")
	}
	return f, nil
}
