package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
)

// gathered are the records that the index of a damaged file names.
type gathered struct {
	rows map[int64]row // living keys, by the revision of their record
	// at says on which page, of which image, a record is.
	at map[int64]place
	// missing are the revisions of records that are not there.
	missing []int64
}

type place struct {
	tree *tree
	page uint64
}

// gather looks for records on every page of the file: those that no tree leads to any more, and old copies, are as good as others,
// since each proves by its checksum that it is whole.
func (o *opening) gather(c *contents) (*gathered, error) {
	g := &gathered{rows: map[int64]row{}, at: map[int64]place{}}
	newer, err := o.logged(c)
	if err != nil {
		return nil, err
	}
	c.reread().each(bucketKeys(), func(e element) {
		h, err := decodeHeader(e.key, e.value)
		if err == nil && !h.deleted && !newer[string(e.key)] {
			g.rows[h.mod] = row{string(e.key), h}
		}
	}, func(error) {})
	g.search(c.image.tree(c.root))
	return g, nil
}

// logged are the keys that the log has newer versions of.
func (o *opening) logged(c *contents) (map[string]bool, error) {
	log, err := o.readLog(c)
	if err != nil {
		return nil, err
	}
	log.close()
	keys := map[string]bool{}
	for _, f := range log.frames {
		for _, rec := range f.records {
			keys[string(rec.key)] = true
		}
	}
	return keys, nil
}

// search notes where records are, and which are missing.
func (g *gathered) search(t *tree) {
	for id := uint64(2); id < t.pages; id++ {
		for _, rec := range t.records(id) {
			if want, ok := g.rows[rec.mod]; ok && want.header == rec.header && want.key == string(rec.key) {
				g.at[rec.mod] = place{t, id}
			}
		}
	}
	g.missing = nil
	for revision := range g.rows {
		if _, ok := g.at[revision]; !ok {
			g.missing = append(g.missing, revision)
		}
	}
}

// records returns the whole records of a page of the log; there are none on others.
func (t *tree) records(id uint64) []record {
	b := make([]byte, pageSize)
	if t.read(b, id) != nil || binary.LittleEndian.Uint64(b) != id {
		return nil
	}
	size := t.sizeOf(b, id)
	if binary.LittleEndian.Uint16(b[8:]) != kindLeaf || size == 0 {
		return nil
	}
	if size > pageSize {
		if b = make([]byte, size); t.read(b, id) != nil {
			return nil
		}
	}
	var records []record
	list, _ := elements(b, kindLeaf) // those before the damage
	for _, e := range list {
		if rec, err := decodeStored(e.key, e.value); err == nil {
			records = append(records, rec)
		}
	}
	return records
}

// fill takes what is missing from a snapshot, as it was then, and returns the names of all that was missing.
func (g *gathered) fill(snap *contents) []string {
	lost := map[string]bool{}
	var names []string
	for _, revision := range g.missing {
		key := g.rows[revision].key
		lost[key] = true
		names = append(names, key)
		delete(g.rows, revision)
	}
	snap.reread().each(bucketKeys(), func(e element) {
		h, err := decodeHeader(e.key, e.value)
		if err == nil && !h.deleted && lost[string(e.key)] {
			g.rows[h.mod] = row{string(e.key), h}
		}
	}, func(error) {})
	g.search(snap.image.tree(snap.root))
	for _, revision := range g.missing { // the snapshot has been checked, so there are none
		delete(g.rows, revision)
	}
	slices.Sort(names)
	return names
}

// build makes a file without history. Its counters make Open tell everybody so.
func (g *gathered) build(b *builder, c *contents) error {
	leased := map[int64]bool{}
	revisions := make([]int64, 0, len(g.rows))
	for revision := range g.rows {
		revisions = append(revisions, revision)
	}
	slices.Sort(revisions)
	var last place
	var records []record
	for _, revision := range revisions {
		if at := g.at[revision]; at != last {
			last, records = at, at.tree.records(at.page)
		}
		n := slices.IndexFunc(records, func(rec record) bool { return rec.mod == revision })
		if n < 0 {
			return errors.New("a record is gone that was there")
		}
		rec := records[n]
		rec.key, rec.value = bytes.Clone(rec.key), bytes.Clone(rec.value)
		leased[rec.lease] = true
		err := errors.Join(b.put(bucketLog(), revisionKey(revision), encodeStored(&rec)), b.put(bucketKeys(), rec.key, encodeHeader(rec.header)))
		if err != nil {
			return err
		}
	}
	var err error
	if c.damaged(string(bucketLeases())) {
		err = b.newLeases(leased)
	} else {
		err = b.copyBucket(c, bucketLeases(), nil)
	}
	counters := map[string]int64{}
	for field, n := range c.counters {
		counters[field] = n
	}
	counters[metaCompacted], counters[metaScrubbed] = counters[metaRevision], counters[metaRevision]
	counters[metaCeiling] = max(counters[metaCeiling], counters[metaRevision])
	return errors.Join(err, b.counters(counters))
}
