package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The layout of bbolt's pages, which is not exported: go.etcd.io/bbolt/internal/common. Numbers are in the machine's
// order; mote is built for little-endian machines only.
const (
	pageHeaderSize = 16 // page number (8 bytes), kind (2), number of elements (2), number of pages that follow (4)
	elementSize    = 16 // branch: position (4), size of key (4), page (8). leaf: flags, position, sizes of key and value (4 each)
	kindBranch     = 0x01
	kindLeaf       = 0x02
	kindFreelist   = 0x10
	elementBucket  = 1  // flag of a leaf's element that is a bucket
	bucketSize     = 16 // what a bucket's value begins with: page of its root (8), sequence (8)
	headerMagic    = 0xED0CDAED
	headerVersion  = 2
	headerSize     = 64 // of a header: magic, version, size of pages, flags (4 each), root bucket (16), freelist, pages, transaction, checksum (8 each)
	maxDepth       = 64 // more levels no tree has
)

// image reads a bbolt file page by page, and trusts none. bbolt itself trusts all: a damaged page makes it panic,
// read foreign memory or run in circles. What image has found sound, bbolt may open.
type image struct {
	file io.ReaderAt
	size int64
}

// root is what one of the file's two header pages says of its transaction.
type root struct {
	tx, bucket, freelist, pages uint64
}

func unsound(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// roots returns the whole headers, the newest first. A power cut may leave one that is not whole.
func (i image) roots() ([]root, error) {
	var roots []root
	for at := range int64(2) {
		b := make([]byte, pageHeaderSize+headerSize)
		if _, err := i.file.ReadAt(b, at*pageSize); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		b = b[pageHeaderSize:]
		sum := fnv.New64a()
		_, _ = sum.Write(b[:headerSize-8])
		word := binary.LittleEndian.Uint32
		if word(b) != headerMagic || word(b[4:]) != headerVersion || sum.Sum64() != binary.LittleEndian.Uint64(b[headerSize-8:]) {
			continue
		}
		if size := word(b[8:]); size != pageSize {
			return nil, fmt.Errorf("%w: its pages have %d bytes", errNotStore, size)
		}
		number := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
		r := root{bucket: number(16), freelist: number(32), pages: number(40), tx: number(48)}
		if len(roots) > 0 && roots[0].tx < r.tx {
			roots = []root{r, roots[0]}
		} else {
			roots = append(roots, r)
		}
	}
	if len(roots) == 0 {
		return nil, unsound("neither of its two headers is whole")
	}
	return roots, nil
}

// tree is one committed transaction of an image.
type tree struct {
	image
	root
	// seen has the pages that were met.
	seen []bool
	// shallow walks do not read leaves.
	shallow bool
}

func (i image) tree(r root) *tree {
	r.pages = min(r.pages, uint64(i.size/pageSize)) // what is behind the end cannot be read
	return &tree{image: i, root: r, seen: make([]bool, r.pages)}
}

// bytes reads page id with those that belong to it.
func (t *tree) bytes(id uint64) ([]byte, error) {
	if id < 2 || id >= t.pages {
		return nil, unsound("page %d is outside the file", id)
	}
	b := make([]byte, pageSize)
	if err := t.read(b, id); err != nil {
		return nil, err
	}
	more := uint64(binary.LittleEndian.Uint32(b[12:]))
	if number := binary.LittleEndian.Uint64(b); number != id || id+more >= t.pages {
		return nil, unsound("page %d says that it is %d, with %d more", id, number, more)
	}
	for n := id; n <= id+more; n++ {
		if t.seen[n] {
			return nil, unsound("page %d is used twice", n)
		}
	}
	for n := id; n <= id+more; n++ {
		t.seen[n] = true
	}
	if more == 0 {
		return b, nil
	}
	b = make([]byte, (1+more)*pageSize)
	return b, t.read(b, id)
}

func (t *tree) read(b []byte, id uint64) error {
	_, err := t.file.ReadAt(b, int64(id)*pageSize)
	if errors.Is(err, io.EOF) {
		return unsound("page %d is behind the end of the file", id)
	}
	return err
}

// element is one of a page: of a branch, child is set; of a leaf, value.
type element struct {
	key, value []byte
	child      uint64
	bucket     bool
}

// elements returns what is on a page of a kind, and the first damage.
func elements(b []byte, kind uint16) ([]element, error) {
	if got := binary.LittleEndian.Uint16(b[8:]); got != kind {
		return nil, unsound("its kind is %d, not %d", got, kind)
	}
	count := int(binary.LittleEndian.Uint16(b[10:]))
	if pageHeaderSize+count*elementSize > len(b) {
		return nil, unsound("%d elements do not fit", count)
	}
	list := make([]element, count)
	for n := range list {
		at := pageHeaderSize + n*elementSize
		word := func(i int) int64 { return int64(binary.LittleEndian.Uint32(b[at+4*i:])) }
		position, keySize, valueSize := word(0), word(1), int64(0)
		if kind == kindLeaf {
			if word(0) > elementBucket {
				return list[:n], unsound("element %d is of no kind", n)
			}
			list[n].bucket = word(0) == elementBucket
			position, keySize, valueSize = word(1), word(2), word(3)
		} else {
			list[n].child = binary.LittleEndian.Uint64(b[at+8:])
		}
		from := int64(at) + position
		if position < elementSize || from+keySize+valueSize > int64(len(b)) {
			return list[:n], unsound("element %d is outside of it", n)
		}
		list[n].key, list[n].value = b[from:from+keySize], b[from+keySize:from+keySize+valueSize]
		if n > 0 && bytes.Compare(list[n-1].key, list[n].key) >= 0 {
			return list[:n], unsound("element %d is out of order", n)
		}
	}
	return list, nil
}

// sizeOf is how many bytes page id has, judged by itself alone.
func (t *tree) sizeOf(b []byte, id uint64) int64 {
	more := uint64(binary.LittleEndian.Uint32(b[12:]))
	if more >= t.pages || id+more >= t.pages {
		return 0
	}
	return int64(1+more) * pageSize
}

// walk calls leaf with all that page id and those below it have. What it cannot read it tells note, and goes on. Keys must lie in
// [low, high); nil is no limit.
func (t *tree) walk(id uint64, leaf func(element), note func(error)) {
	depth, err := t.depth(id)
	if err != nil {
		note(err)
		return
	}
	t.walkPage(id, depth, nil, nil, leaf, note)
}

func (t *tree) walkPage(id uint64, depth int, low, high []byte, leaf func(element), note func(error)) {
	if depth == 0 && t.shallow {
		if id < 2 || id >= t.pages || t.seen[id] {
			note(unsound("page %d is outside the file, or used twice", id))
			return
		}
		t.seen[id] = true
		return
	}
	b, err := t.bytes(id)
	if err != nil {
		note(err)
		return
	}
	kind := uint16(kindBranch)
	if depth == 0 {
		kind = kindLeaf
	}
	list, err := elements(b, kind)
	if err != nil {
		note(fmt.Errorf("page %d: %w", id, err))
	}
	if len(list) == 0 && depth > 0 {
		note(unsound("page %d has no children", id))
	}
	for n, e := range list {
		if low != nil && bytes.Compare(e.key, low) < 0 || high != nil && bytes.Compare(e.key, high) >= 0 {
			note(unsound("page %d: element %d is in the wrong page", id, n))
			continue
		}
		if depth == 0 {
			leaf(e)
			continue
		}
		end := high
		if n+1 < len(list) {
			end = list[n+1].key
		}
		t.walkPage(e.child, depth-1, e.key, end, leaf, note)
	}
}

// depth is how many levels of branches are above the leaves, which all have the same: that of the first that can be reached.
func (t *tree) depth(id uint64) (int, error) {
	for depth := range maxDepth {
		if id < 2 || id >= t.pages {
			return 0, unsound("page %d is outside the file", id)
		}
		b := make([]byte, pageSize)
		if err := t.read(b, id); err != nil {
			return 0, err
		}
		if number := binary.LittleEndian.Uint64(b); number != id {
			return 0, unsound("page %d says that it is %d", id, number)
		}
		if binary.LittleEndian.Uint16(b[8:]) != kindBranch {
			return depth, nil // a leaf, or none, which is found when it is read
		}
		if size := t.sizeOf(b, id); size > pageSize { // of long keys
			b = make([]byte, size)
			if err := t.read(b, id); err != nil {
				return 0, err
			}
		}
		list, err := elements(b, kindBranch)
		if len(list) == 0 {
			return 0, errors.Join(unsound("page %d has no children", id), err)
		}
		id = list[0].child
	}
	return 0, unsound("page %d runs in circles", id)
}

// bucket calls leaf with the entries of a bucket whose value in the root bucket is given.
func (t *tree) walkBucket(value []byte, leaf func(element), note func(error)) {
	if len(value) < bucketSize {
		note(unsound("a bucket without root"))
		return
	}
	if id := binary.LittleEndian.Uint64(value); id != 0 {
		t.walk(id, leaf, note)
		return
	}
	inline := value[bucketSize:] // a small bucket has its only page with it
	if len(inline) < pageHeaderSize {
		note(unsound("a bucket without page"))
		return
	}
	list, err := elements(inline, kindLeaf)
	if err != nil {
		note(err)
	}
	for _, e := range list {
		leaf(e)
	}
}

// free is how many pages are free, as the freelist says.
func (t *tree) free() (uint64, error) {
	b := make([]byte, pageHeaderSize+8)
	if err := t.read(b, t.freelist); err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint16(b[8:]) != kindFreelist {
		return 0, unsound("page %d is no freelist", t.freelist)
	}
	count := uint64(binary.LittleEndian.Uint16(b[10:]))
	if count == 0xFFFF {
		count = binary.LittleEndian.Uint64(b[pageHeaderSize:])
	}
	return count, nil
}

// checkFree compares the freelist with the pages that were met: after a walk of all that is in use, each of the others must be
// free, if that was full.
func (t *tree) checkFree(full bool, note func(error)) {
	b, err := t.bytes(t.freelist)
	if err != nil {
		note(err)
		return
	}
	count, err := t.free()
	if err != nil {
		note(err)
		return
	}
	list := b[pageHeaderSize:]
	if binary.LittleEndian.Uint16(b[10:]) == 0xFFFF {
		list = list[8:]
	}
	if count > uint64(len(list)/8) {
		note(unsound("freelist: %d pages do not fit", count))
		return
	}
	for n := range count {
		id := binary.LittleEndian.Uint64(list[8*n:])
		switch {
		case id < 2 || id >= t.pages:
			note(unsound("page %d is free and outside the file", id))
		case t.seen[id]:
			note(unsound("page %d is free and in use", id))
		default:
			t.seen[id] = true
		}
	}
	if !full {
		return
	}
	for id := uint64(2); id < t.pages; id++ {
		if !t.seen[id] {
			note(unsound("page %d is neither in use nor free", id))
		}
	}
}
