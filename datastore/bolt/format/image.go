package format

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// Image reads a bbolt file page by page and trusts no page. bbolt itself trusts all of them: a
// damaged one makes it panic, read foreign memory or run in circles. bbolt may open what Image has
// found sound.
type Image struct {
	File io.ReaderAt
	// Size is the file's length in bytes. Nothing is read behind it.
	Size int64
}

// Commit is one of the last two committed transactions of a file, as one of bbolt's two meta pages
// has it.
type Commit struct {
	// ID counts a file's transactions. It decides which of the two meta pages a commit overwrites:
	// ID mod 2.
	ID uint64
	// Root is the root page of the bucket of buckets, and Freelist the first page of the freelist.
	Root, Freelist uint64
	// Pages is the number of pages of the file, free pages included.
	Pages uint64
}

// Commits returns the commits whose meta pages are whole, the newest first. A power cut may leave
// one that is not whole. Without any, the error is an ErrDamaged; it is ErrNotStore if pages have
// another size.
func (i Image) Commits() ([]Commit, error) {
	var commits []Commit
	for at := range int64(2) {
		b := make([]byte, pageHeaderSize+metaSize)
		if _, err := i.File.ReadAt(b, at*PageSize); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		b = b[pageHeaderSize:]
		sum := fnv.New64a()
		_, _ = sum.Write(b[:metaSize-8])
		word := binary.LittleEndian.Uint32
		if word(b) != metaMagic || word(b[4:]) != metaVersion || sum.Sum64() != binary.LittleEndian.Uint64(b[metaSize-8:]) {
			continue
		}
		if size := word(b[8:]); size != PageSize {
			return nil, fmt.Errorf("%w: its pages have %d bytes", ErrNotStore, size)
		}
		number := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
		c := Commit{Root: number(16), Freelist: number(32), Pages: number(40), ID: number(48)}
		if len(commits) > 0 && commits[0].ID < c.ID {
			commits = []Commit{c, commits[0]}
		} else {
			commits = append(commits, c)
		}
	}
	if len(commits) == 0 {
		return nil, Damagef("neither of its two headers is whole")
	}
	return commits, nil
}

// Tree returns the pages of a commit, none of which has been visited.
func (i Image) Tree(c Commit) *Tree {
	c.Pages = min(c.Pages, uint64(i.Size/PageSize)) // pages behind the end cannot be read
	return &Tree{Image: i, Commit: c, visited: make([]bool, c.Pages)}
}
