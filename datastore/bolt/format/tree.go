package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Tree is the pages of one commit. It remembers which pages were visited: a page that is used twice
// is damage, and after a walk of everything each other page must be free.
type Tree struct {
	Image
	// Commit's Pages are at most those that the file has.
	Commit
	// Shallow walks read no leaves: they only note that a leaf is used.
	Shallow bool
	visited []bool
}

// Visited reports whether a page was visited.
func (t *Tree) Visited(id uint64) bool { return t.visited[id] }

// Walk calls leaf with all entries of page id and of the pages below it, in order. It passes errors
// of pages that it cannot read to note, and continues.
func (t *Tree) Walk(id uint64, leaf func(Element), note func(error)) {
	depth, err := t.depth(id)
	if err != nil {
		note(err)
		return
	}
	t.walk(id, depth, nil, nil, leaf, note)
}

// walk is Walk of a page above depth levels. Keys must lie in [low, high); nil is no limit.
func (t *Tree) walk(id uint64, depth int, low, high []byte, leaf func(Element), note func(error)) {
	if depth == 0 && t.Shallow {
		t.visitLeaf(id, note)
		return
	}
	b, err := t.page(id)
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
		note(Damagef("page %d has no children", id))
	}
	for n, e := range list {
		if low != nil && bytes.Compare(e.Key, low) < 0 || high != nil && bytes.Compare(e.Key, high) >= 0 {
			note(Damagef("page %d: element %d is in the wrong page", id, n))
			continue
		}
		if depth == 0 {
			leaf(e)
			continue
		}
		end := high
		if n+1 < len(list) {
			end = list[n+1].Key
		}
		t.walk(e.child, depth-1, e.Key, end, leaf, note)
	}
}

// visitLeaf notes that a leaf is used, without reading it.
func (t *Tree) visitLeaf(id uint64, note func(error)) {
	if id < 2 || id >= t.Pages || t.visited[id] {
		note(Damagef("page %d is outside the file, or used twice", id))
		return
	}
	t.visited[id] = true
}

// depth returns how many levels of branches are above the leaves: that of the first leaf, since all
// have the same.
func (t *Tree) depth(id uint64) (int, error) {
	for depth := range maxDepth {
		if id < 2 || id >= t.Pages {
			return 0, Damagef("page %d is outside the file", id)
		}
		b := make([]byte, PageSize)
		if err := t.read(b, id); err != nil {
			return 0, err
		}
		if number := binary.LittleEndian.Uint64(b); number != id {
			return 0, Damagef("page %d says that it is %d", id, number)
		}
		if binary.LittleEndian.Uint16(b[8:]) != kindBranch {
			return depth, nil // a leaf, or none, which is found when it is read
		}
		if size := t.size(b, id); size > PageSize { // of long keys
			b = make([]byte, size)
			if err := t.read(b, id); err != nil {
				return 0, err
			}
		}
		list, err := elements(b, kindBranch)
		if len(list) == 0 {
			return 0, errors.Join(Damagef("page %d has no children", id), err)
		}
		id = list[0].child
	}
	return 0, Damagef("page %d runs in circles", id)
}

// WalkBucket calls leaf with the entries of a bucket. value is the bucket's value in the bucket of
// buckets.
func (t *Tree) WalkBucket(value []byte, leaf func(Element), note func(error)) {
	if len(value) < bucketSize {
		note(Damagef("a bucket without root"))
		return
	}
	if id := binary.LittleEndian.Uint64(value); id != 0 {
		t.Walk(id, leaf, note)
		return
	}
	inline := value[bucketSize:] // a small bucket has its only page with it
	if len(inline) < pageHeaderSize {
		note(Damagef("a bucket without page"))
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

// Records returns the whole records on page id, which need not be part of the tree. There are none
// on pages that are not of the log.
func (t *Tree) Records(id uint64) []Record {
	b := make([]byte, PageSize)
	if t.read(b, id) != nil || binary.LittleEndian.Uint64(b) != id {
		return nil
	}
	size := t.size(b, id)
	if binary.LittleEndian.Uint16(b[8:]) != kindLeaf || size == 0 {
		return nil
	}
	if size > PageSize {
		if b = make([]byte, size); t.read(b, id) != nil {
			return nil
		}
	}
	var records []Record
	list, _ := elements(b, kindLeaf) // those before the damage
	for _, e := range list {
		if rec, err := DecodeRecord(e.Key, e.Value); err == nil {
			records = append(records, rec)
		}
	}
	return records
}

// page visits page id and reads it with the pages that belong to it.
func (t *Tree) page(id uint64) ([]byte, error) {
	if id < 2 || id >= t.Pages {
		return nil, Damagef("page %d is outside the file", id)
	}
	b := make([]byte, PageSize)
	if err := t.read(b, id); err != nil {
		return nil, err
	}
	more := uint64(binary.LittleEndian.Uint32(b[12:]))
	if number := binary.LittleEndian.Uint64(b); number != id || id+more >= t.Pages {
		return nil, Damagef("page %d says that it is %d, with %d more", id, number, more)
	}
	for n := id; n <= id+more; n++ {
		if t.visited[n] {
			return nil, Damagef("page %d is used twice", n)
		}
	}
	for n := id; n <= id+more; n++ {
		t.visited[n] = true
	}
	if more == 0 {
		return b, nil
	}
	b = make([]byte, (1+more)*PageSize)
	return b, t.read(b, id)
}

func (t *Tree) read(b []byte, id uint64) error {
	_, err := t.File.ReadAt(b, int64(id)*PageSize)
	if errors.Is(err, io.EOF) {
		return Damagef("page %d is behind the end of the file", id)
	}
	return err
}

// size returns how many bytes a page has with those that belong to it, or 0 if they do not fit the
// file.
func (t *Tree) size(page []byte, id uint64) int64 {
	more := uint64(binary.LittleEndian.Uint32(page[12:]))
	if more >= t.Pages || id+more >= t.Pages {
		return 0
	}
	return int64(1+more) * PageSize
}
