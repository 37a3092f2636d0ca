package etcd

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mote-k8s/mote/datastore/bolt"
)

// encoded is an answer in its wire format. Codec gives its bytes to gRPC, which frees them.
type encoded struct{ data mem.BufferSlice }

// The fields of etcd's RangeResponse and KeyValue.
const (
	rangeHeader, rangeKVs, rangeMore, rangeCount        = 1, 2, 3, 4
	kvKey, kvCreate, kvMod, kvVersion, kvValue, kvLease = 1, 2, 3, 4, 5, 6
	headerRevision                                      = 3
)

// rangeEncoder writes a RangeResponse. Values go from the store's pages straight into the buffers
// that gRPC sends, so a list is not copied anywhere else.
type rangeEncoder struct {
	pool mem.BufferPool
	done mem.BufferSlice
	// last is the buffer that is being filled, up to used; total is the number of bytes in all
	// buffers.
	last        *[]byte
	used, total int
	// The encoded bytes around a value, reused for the next value.
	start, head, tail []byte
}

// endSize is roughly the size in bytes of the fields after the last key.
const endSize = 32

// largestPiece is the size of the buffers of a long answer: two HTTP/2 frames.
const largestPiece = 32 << 10

func (e *rangeEncoder) write(b []byte) {
	for len(b) > 0 {
		e.expect(len(b))
		n := copy((*e.last)[e.used:], b)
		e.used += n
		e.total += n
		b = b[n:]
		if e.used == len(*e.last) {
			e.flush()
		}
	}
}

// expect takes a buffer for the next n bytes, if there is none. For a long answer the buffer is
// larger. At most it wastes as many bytes as all buffers before it have.
func (e *rangeEncoder) expect(n int) {
	if e.last == nil {
		e.last = e.pool.Get(min(max(n, e.total), largestPiece))
		*e.last = (*e.last)[:cap(*e.last)]
	}
}

func (e *rangeEncoder) flush() {
	if e.last != nil {
		*e.last = (*e.last)[:e.used]
		e.done = append(e.done, mem.NewBuffer(e.last, e.pool))
		e.last, e.used = nil, 0
	}
}

func (e *rangeEncoder) add(kv *bolt.KV) {
	b := protowire.AppendString(protowire.AppendTag(e.head[:0], kvKey, protowire.BytesType), kv.Key)
	b = appendInt(b, kvCreate, kv.Create)
	b = appendInt(b, kvMod, kv.Mod)
	b = appendInt(b, kvVersion, kv.Version)
	if len(kv.Value) > 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, kvValue, protowire.BytesType), uint64(len(kv.Value)))
	}
	e.head = b
	e.tail = appendInt(e.tail[:0], kvLease, kv.Lease)
	e.start = protowire.AppendTag(e.start[:0], rangeKVs, protowire.BytesType)
	e.start = protowire.AppendVarint(e.start, uint64(len(b)+len(kv.Value)+len(e.tail)))
	e.expect(len(e.start) + len(b) + len(kv.Value) + len(e.tail) + endSize)
	e.write(e.start)
	e.write(e.head)
	e.write(kv.Value)
	e.write(e.tail)
}

// end adds the fields that are known once the list is complete.
func (e *rangeEncoder) end(list bolt.List, more bool) *encoded {
	revision := appendInt(nil, headerRevision, list.Revision)
	b := protowire.AppendBytes(protowire.AppendTag(e.head[:0], rangeHeader, protowire.BytesType), revision)
	if more {
		b = appendInt(b, rangeMore, 1)
	}
	e.write(appendInt(b, rangeCount, list.Count))
	e.flush()
	return &encoded{e.done}
}

// free returns the buffers to the pool when no answer is sent.
func (e *rangeEncoder) free() {
	e.flush()
	e.done.Free()
}

func appendInt(b []byte, field protowire.Number, n int64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(n))
}
