package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"

	"go.etcd.io/bbolt"
)

// The names of the file's buckets. See ../README.md for what is in them.
func bucketMeta() []byte   { return []byte("meta") }
func bucketLog() []byte    { return []byte("log") }
func bucketKeys() []byte   { return []byte("keys") }
func bucketLeases() []byte { return []byte("leases") }

func buckets() [][]byte {
	return [][]byte{bucketMeta(), bucketLog(), bucketKeys(), bucketLeases()}
}

// Fields of the meta bucket, each a big-endian uint64. The bucket is small enough for bbolt to
// keep it inside the root page, which every transaction writes anyway: changing it is free.
const (
	metaFormat    = "format"
	metaRevision  = "revision"  // the last that was given out
	metaCompacted = "compacted" // reads and watches below it are refused
	metaScrubbed  = "scrubbed"  // the log is cleaned up to here; trails metaCompacted
	metaCeiling   = "ceiling"   // above all revisions that volatile writes may have; 0 after a clean stop
	metaWAL       = "wal"       // the first sequence of the write-ahead log that the file does not have
	metaMarked    = "marked"    // 1: that sequence begins with an empty frame, and ends with a mark
	metaLogSum    = "sum.log"   // over the entries of the log, see entrySum
	metaKeysSum   = "sum.keys"
	metaLeasesSum = "sum.leases"
	metaSum       = "sum" // over all the others
)

func getMeta(b *bbolt.Bucket, field string) int64 {
	v := b.Get([]byte(field))
	if len(v) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(v))
}

func putMeta(b *bbolt.Bucket, field string, n int64) error {
	return b.Put([]byte(field), revisionKey(n))
}

func revisionKey(revision int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(revision))
}

// header describes one version of a key: a row of the key index is its latest version's.
type header struct {
	deleted bool
	mod     int64
	create  int64
	version int64
	lease   int64
}

// record is an entry of the log. Decoded from the file, its slices point into bbolt's memory map: they are
// valid only inside the transaction.
type record struct {
	header
	// prev is the revision of the key's version before this one, a deletion included; 0 if none.
	prev  int64
	key   []byte
	value []byte
	// heap says that key and value are in ordinary memory, and never change.
	heap bool
	// encoded is the record as the file has it, if that is known; key and value may be parts of it.
	encoded []byte
}

const flagDeleted = 1

func appendHeader(b []byte, h header) []byte {
	var flags byte
	if h.deleted {
		flags |= flagDeleted
	}
	b = append(b, flags)
	for _, n := range [...]int64{h.mod, h.create, h.version, h.lease} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

func encodeHeader(h header) []byte {
	return appendHeader(make([]byte, 0, 24), h)
}

func appendRecord(b []byte, r *record) []byte {
	b = appendHeader(b, r.header)
	b = binary.AppendUvarint(b, uint64(r.prev))
	b = binary.AppendUvarint(b, uint64(len(r.key)))
	b = append(b, r.key...)
	return append(b, r.value...)
}

// recordSize is the length of an encoded record.
func recordSize(r *record) int {
	size := 1 + len(r.key) + len(r.value)
	for _, n := range [...]int64{r.mod, r.create, r.version, r.lease, r.prev, int64(len(r.key))} {
		size += max(1, (bits.Len64(uint64(n))+6)/7)
	}
	return size
}

// decoder reads varints until the first damage, which it remembers.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) int() int64 {
	n, size := binary.Uvarint(d.rest)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return int64(n)
}

func (d *decoder) bytes() []byte {
	size := d.int()
	if d.bad || size < 0 || size > int64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:size]
	d.rest = d.rest[size:]
	return b
}

func (d *decoder) header() header {
	if len(d.rest) == 0 {
		d.bad = true
		return header{}
	}
	h := header{deleted: d.rest[0]&flagDeleted != 0}
	d.rest = d.rest[1:]
	h.mod, h.create, h.version, h.lease = d.int(), d.int(), d.int(), d.int()
	return h
}

func decodeHeader(key, row []byte) (header, error) {
	d := decoder{rest: row}
	h := d.header()
	if d.bad {
		return h, fmt.Errorf("%w: index row of key %q", ErrDamaged, key)
	}
	return h, nil
}

func decodeRecord(b []byte) (record, error) {
	d := decoder{rest: b}
	r := record{header: d.header()}
	r.prev = d.int()
	r.key = d.bytes()
	r.value = d.rest
	if d.bad {
		return r, fmt.Errorf("%w: record, perhaps of revision %d", ErrDamaged, r.mod)
	}
	return r, nil
}

// storedSum is the length of the checksum before a record in the file.
const storedSum = 4

// encodeStored is a record as the log of the file has it: behind its checksum.
func encodeStored(r *record) []byte {
	b := appendRecord(make([]byte, storedSum, storedSum+recordSize(r)), r)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[storedSum:], castagnoli()))
	return b
}

// encode settles a record that will not change any more.
func (r *record) encode() {
	r.encoded, r.heap = encodeStored(r), true
	value := len(r.encoded) - len(r.value)
	r.key = r.encoded[value-len(r.key) : value : value]
	if r.value != nil {
		r.value = r.encoded[value:]
	}
}

// stored is as encodeStored.
func (r *record) stored() []byte {
	if r.encoded != nil {
		return r.encoded
	}
	return encodeStored(r)
}

// decodeStored returns the record that the file's log has under key, a revision.
func decodeStored(key, b []byte) (record, error) {
	if len(key) != 8 || len(b) < storedSum || crc32.Checksum(b[storedSum:], castagnoli()) != binary.BigEndian.Uint32(b) {
		return record{}, fmt.Errorf("%w: record of revision %x differs from its checksum", ErrDamaged, key)
	}
	r, err := decodeRecord(b[storedSum:])
	if err == nil && r.mod != revisionOf(key) {
		err = fmt.Errorf("%w: record %d is stored as revision %d", ErrDamaged, r.mod, revisionOf(key))
	}
	return r, err
}

// leaseRow is a row of the leases bucket; its key is the lease's number.
type leaseRow struct {
	ttl  int64 // seconds
	ends int64 // Unix seconds
}

func encodeLease(l leaseRow) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(l.ttl)), uint64(l.ends))
}

func decodeLease(key, row []byte) (int64, leaseRow, error) {
	d := decoder{rest: row}
	l := leaseRow{ttl: d.int(), ends: d.int()}
	if d.bad || len(key) != 8 {
		return 0, l, fmt.Errorf("%w: row of lease %x", ErrDamaged, key)
	}
	return revisionOf(key), l, nil
}

// kv copies the record out of the memory map, if it is there.
func (r *record) kv() *KV {
	kv := newKV(string(r.key), r.header)
	switch {
	case r.deleted:
	case r.heap:
		kv.Value = r.value
	default:
		kv.Value = append([]byte{}, r.value...)
	}
	return kv
}

func newKV(key string, h header) *KV {
	return &KV{Key: key, Create: h.create, Mod: h.mod, Version: h.version, Lease: h.lease}
}
