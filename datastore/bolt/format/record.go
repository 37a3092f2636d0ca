package format

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// Header describes one version of a key. A row of the index is the header of the key's latest
// version.
type Header struct {
	// Deleted means that the version is a deletion. Create, Version and Lease are 0 then.
	Deleted bool
	// Mod is the revision of this version, Create that of the key's first one.
	Mod, Create int64
	// Version counts the writes since the key was made, from 1.
	Version int64
	// Lease is the number of the lease that the key ends with; 0 is none.
	Lease int64
}

// Record is an entry of the log: one version of a key with its value. If it was decoded from the
// file, Key and Value are parts of bbolt's memory map: they are valid until the transaction ends.
type Record struct {
	Header
	// Prev is the revision of the key's version before this one, a deletion included; 0 if there is
	// none.
	Prev  int64
	Key   []byte
	Value []byte
	// owned means that Key and Value are in ordinary memory and never change.
	owned bool
	// encoded is the record as the file has it, or nil. Key and Value may be parts of it.
	encoded []byte
}

// FlagDeleted is set in the first byte of a row, before Mod, if the version is a deletion.
const FlagDeleted = 1

func appendHeader(b []byte, h Header) []byte {
	var flags byte
	if h.Deleted {
		flags |= FlagDeleted
	}
	b = append(b, flags)
	for _, n := range [...]int64{h.Mod, h.Create, h.Version, h.Lease} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

// Encode returns h as a row of the index.
func (h Header) Encode() []byte {
	return appendHeader(make([]byte, 0, 24), h)
}

// appendRecord appends a record as a frame has it.
func appendRecord(b []byte, r *Record) []byte {
	b = appendHeader(b, r.Header)
	b = binary.AppendUvarint(b, uint64(r.Prev))
	b = binary.AppendUvarint(b, uint64(len(r.Key)))
	b = append(b, r.Key...)
	return append(b, r.Value...)
}

// recordSize returns how many bytes appendRecord appends.
func recordSize(r *Record) int {
	size := 1 + len(r.Key) + len(r.Value)
	for _, n := range [...]int64{r.Mod, r.Create, r.Version, r.Lease, r.Prev, int64(len(r.Key))} {
		size += max(1, (bits.Len64(uint64(n))+6)/7)
	}
	return size
}

// decoder reads varints until the first damage, which it remembers.
type decoder struct {
	rest    []byte
	damaged bool
}

func (d *decoder) int() int64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.damaged = true
		return 0
	}
	d.rest = d.rest[size:]
	return int64(n)
}

func (d *decoder) bytes() []byte {
	size := d.int()
	if d.damaged || size < 0 || size > int64(len(d.rest)) {
		d.damaged = true
		return nil
	}
	b := d.rest[:size]
	d.rest = d.rest[size:]
	return b
}

func (d *decoder) header() Header {
	if len(d.rest) == 0 {
		d.damaged = true
		return Header{}
	}
	h := Header{Deleted: d.rest[0]&FlagDeleted != 0}
	d.rest = d.rest[1:]
	h.Mod, h.Create, h.Version, h.Lease = d.int(), d.int(), d.int(), d.int()
	return h
}

// DecodeHeader decodes the row that the index has under key.
func DecodeHeader(key, row []byte) (Header, error) {
	d := decoder{rest: row}
	h := d.header()
	if d.damaged {
		return h, Damagef("index row of key %q", key)
	}
	return h, nil
}

// DecodeUnsummed decodes a record without a checksum before it: one of VersionUnsummed.
func DecodeUnsummed(b []byte) (Record, error) {
	d := decoder{rest: b}
	r := Record{Header: d.header()}
	r.Prev = d.int()
	r.Key = d.bytes()
	r.Value = d.rest
	if d.damaged {
		return r, Damagef("record, perhaps of revision %d", r.Mod)
	}
	return r, nil
}

// sumSize is the length of the checksum before a record in the file.
const sumSize = 4

// Encode encodes a record that will not change any more. Key and Value become parts of the
// encoding.
func (r *Record) Encode() {
	r.encoded, r.owned = encodeRecord(r), true
	value := len(r.encoded) - len(r.Value)
	r.Key = r.encoded[value-len(r.Key) : value : value]
	if r.Value != nil {
		r.Value = r.encoded[value:]
	}
}

// Encoded returns the record as the log of the file has it: behind its checksum.
func (r *Record) Encoded() []byte {
	if r.encoded != nil {
		return r.encoded
	}
	return encodeRecord(r)
}

func encodeRecord(r *Record) []byte {
	b := appendRecord(make([]byte, sumSize, sumSize+recordSize(r)), r)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[sumSize:], castagnoli()))
	return b
}

// DecodeRecord decodes the record that the file's log has under key, a RevisionKey. It refuses one
// that differs from its checksum or belongs to another revision.
func DecodeRecord(key, b []byte) (Record, error) {
	if len(key) != 8 || len(b) < sumSize || crc32.Checksum(b[sumSize:], castagnoli()) != binary.BigEndian.Uint32(b) {
		return Record{}, Damagef("record of revision %x differs from its checksum", key)
	}
	r, err := DecodeUnsummed(b[sumSize:])
	if err == nil && r.Mod != RevisionOf(key) {
		err = Damagef("record %d is stored as revision %d", r.Mod, RevisionOf(key))
	}
	return r, err
}

// WithPrev returns a copy of the record that follows another version of its key.
func (r *Record) WithPrev(prev int64) *Record {
	linked := *r
	linked.Prev, linked.encoded = prev, nil
	return &linked
}

// OwnValue returns the value in memory that stays valid. It must not be changed.
func (r *Record) OwnValue() []byte {
	if r.owned {
		return r.Value
	}
	return append([]byte{}, r.Value...)
}

// Lease is a row of the leases bucket. Its key is the lease's number.
type Lease struct {
	// TTL is the time to live in seconds; in a frame, 0 means that the lease has ended.
	TTL int64
	// Ends is the time of the lease's end, in Unix seconds.
	Ends int64
}

// Encode returns l as a row.
func (l Lease) Encode() []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(l.TTL)), uint64(l.Ends))
}

// DecodeLease decodes the row that the leases bucket has under key, and returns the lease's number.
func DecodeLease(key, row []byte) (int64, Lease, error) {
	d := decoder{rest: row}
	l := Lease{TTL: d.int(), Ends: d.int()}
	if d.damaged || len(key) != 8 {
		return 0, l, Damagef("row of lease %x", key)
	}
	return RevisionOf(key), l, nil
}
