package format

import (
	"bytes"
	"encoding/binary"
)

// The layout of bbolt's pages, which bbolt does not export: go.etcd.io/bbolt/internal/common.
// Numbers are in the machine's order; mote is built for little-endian machines only.
const (
	// pageHeaderSize: page number (8 bytes), kind (2), number of elements (2), number of pages that
	// follow (4).
	pageHeaderSize = 16
	// elementSize: of a branch, position (4), size of key (4), page (8); of a leaf, flags,
	// position, sizes of key and value (4 each).
	elementSize = 16
	// bucketSize: the value of a bucket begins with the page of its root (8) and a sequence (8).
	bucketSize = 16
	// metaSize: magic, version, size of pages, flags (4 each), root bucket (16), freelist, pages,
	// transaction, checksum (8 each).
	metaSize    = 64
	metaMagic   = 0xED0CDAED
	metaVersion = 2

	kindBranch   = 0x01
	kindLeaf     = 0x02
	kindFreelist = 0x10
	// elementBucket is the flag of a leaf's element that is a bucket.
	elementBucket = 1
	// maxDepth is more levels than any tree has.
	maxDepth = 64
	// manyPages, as the number of elements of a freelist, means that the number is in the first
	// element.
	manyPages = 0xFFFF
)

// Element is an entry of a page.
type Element struct {
	Key, Value []byte
	// Bucket means that Value is the value of a bucket.
	Bucket bool
	// child is the page below an element of a branch, which has no Value.
	child uint64
}

// elements returns the entries of a page of a kind up to the first damage, which is the error.
func elements(page []byte, kind uint16) ([]Element, error) {
	if got := binary.LittleEndian.Uint16(page[8:]); got != kind {
		return nil, Damagef("its kind is %d, not %d", got, kind)
	}
	count := int(binary.LittleEndian.Uint16(page[10:]))
	if pageHeaderSize+count*elementSize > len(page) {
		return nil, Damagef("%d elements do not fit", count)
	}
	list := make([]Element, count)
	for n := range list {
		at := pageHeaderSize + n*elementSize
		word := func(i int) int64 { return int64(binary.LittleEndian.Uint32(page[at+4*i:])) }
		position, keySize, valueSize := word(0), word(1), int64(0)
		if kind == kindLeaf {
			if word(0) > elementBucket {
				return list[:n], Damagef("element %d is of no kind", n)
			}
			list[n].Bucket = word(0) == elementBucket
			position, keySize, valueSize = word(1), word(2), word(3)
		} else {
			list[n].child = binary.LittleEndian.Uint64(page[at+8:])
		}
		from := int64(at) + position
		if position < elementSize || from+keySize+valueSize > int64(len(page)) {
			return list[:n], Damagef("element %d is outside of it", n)
		}
		list[n].Key, list[n].Value = page[from:from+keySize], page[from+keySize:from+keySize+valueSize]
		if n > 0 && bytes.Compare(list[n-1].Key, list[n].Key) >= 0 {
			return list[:n], Damagef("element %d is out of order", n)
		}
	}
	return list, nil
}
