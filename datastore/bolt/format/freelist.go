package format

import "encoding/binary"

// FreePages returns how many free pages the freelist has.
func (t *Tree) FreePages() (uint64, error) {
	b := make([]byte, pageHeaderSize+8)
	if err := t.read(b, t.Freelist); err != nil {
		return 0, err
	}
	if binary.LittleEndian.Uint16(b[8:]) != kindFreelist {
		return 0, Damagef("page %d is no freelist", t.Freelist)
	}
	count := uint64(binary.LittleEndian.Uint16(b[10:]))
	if count == manyPages {
		count = binary.LittleEndian.Uint64(b[pageHeaderSize:])
	}
	return count, nil
}

// CheckFreelist compares the freelist with the pages that were visited, and passes each error to
// note. complete means that all pages in use were visited: each other page must then be free.
func (t *Tree) CheckFreelist(complete bool, note func(error)) {
	b, err := t.page(t.Freelist)
	if err != nil {
		note(err)
		return
	}
	count, err := t.FreePages()
	if err != nil {
		note(err)
		return
	}
	list := b[pageHeaderSize:]
	if binary.LittleEndian.Uint16(b[10:]) == manyPages {
		list = list[8:]
	}
	if count > uint64(len(list)/8) {
		note(Damagef("freelist: %d pages do not fit", count))
		return
	}
	for n := range count {
		id := binary.LittleEndian.Uint64(list[8*n:])
		switch {
		case id < 2 || id >= t.Pages:
			note(Damagef("page %d is free and outside the file", id))
		case t.visited[id]:
			note(Damagef("page %d is free and in use", id))
		default:
			t.visited[id] = true
		}
	}
	if !complete {
		return
	}
	for id := uint64(2); id < t.Pages; id++ {
		if !t.visited[id] {
			note(Damagef("page %d is neither in use nor free", id))
		}
	}
}
