package rescue

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// salvage makes a file of the records that the index names, wherever they are; the history is lost.
// It returns false if records are missing and there is no snapshot to take them from.
func (o *opening) salvage(now *contents, cause error) (bool, error) {
	s, err := o.findRecords(now)
	if err != nil {
		return false, err
	}
	r := Repair{What: "rebuilt the file from the records that its index names: " + cause.Error()}
	if len(s.missing) > 0 {
		snap, err := o.snapshot()
		if snap == nil || err != nil {
			return false, err
		}
		defer snap.close()
		if snap.counters.Format == format.VersionUnsummed {
			return false, nil // single records of it prove nothing
		}
		names := s.takeFrom(snap.contents)
		r.Lost = fmt.Sprintf("the last changes of %d objects, which are as in snapshot %s or gone: %s", len(names), snap.name, abbreviate(names))
	}
	return true, o.replaceFile(r, func(b *builder) error { return s.build(b, now) })
}

// salvaged are the records that the index of a damaged file names.
type salvaged struct {
	// rows are the index rows of living keys, by the revision of their record.
	rows map[int64]row
	// at is the page, and its file, that has a record.
	at map[int64]place
	// missing are the revisions of the records that were not found.
	missing []int64
}

// row is a row of the index.
type row struct {
	key string
	format.Header
}

type place struct {
	tree *format.Tree
	page uint64
}

// findRecords looks for records on every page of the file. Pages that no tree refers to any more,
// and old copies, are as good as others: each record proves by its checksum that it is whole.
func (o *opening) findRecords(c *contents) (*salvaged, error) {
	s := &salvaged{rows: map[int64]row{}, at: map[int64]place{}}
	newer, err := o.keysInLog(c)
	if err != nil {
		return nil, err
	}
	c.reread().each(format.KeysBucket, func(e format.Element) {
		h, err := format.DecodeHeader(e.Key, e.Value)
		if err == nil && !h.Deleted && !newer[string(e.Key)] {
			s.rows[h.Mod] = row{string(e.Key), h}
		}
	}, func(error) {})
	s.search(c.Image.Tree(c.Commit))
	return s, nil
}

// keysInLog returns the keys that the log has newer versions of.
func (o *opening) keysInLog(c *contents) (map[string]bool, error) {
	log, err := o.readLog(c)
	if err != nil {
		return nil, err
	}
	log.close()
	keys := map[string]bool{}
	for _, f := range log.frames {
		for _, rec := range f.Records {
			keys[string(rec.Key)] = true
		}
	}
	return keys, nil
}

// search records the places of the records that it finds, and which are missing.
func (s *salvaged) search(t *format.Tree) {
	for id := uint64(2); id < t.Pages; id++ {
		for _, rec := range t.Records(id) {
			if want, ok := s.rows[rec.Mod]; ok && want.Header == rec.Header && want.key == string(rec.Key) {
				s.at[rec.Mod] = place{t, id}
			}
		}
	}
	s.missing = nil
	for revision := range s.rows {
		if _, ok := s.at[revision]; !ok {
			s.missing = append(s.missing, revision)
		}
	}
}

// takeFrom takes the missing records from a sound snapshot, as they were then, and returns the keys
// of all records that were missing.
func (s *salvaged) takeFrom(snap *contents) []string {
	lost := map[string]bool{}
	var names []string
	for _, revision := range s.missing {
		key := s.rows[revision].key
		lost[key] = true
		names = append(names, key)
		delete(s.rows, revision)
	}
	snap.reread().each(format.KeysBucket, func(e format.Element) {
		h, err := format.DecodeHeader(e.Key, e.Value)
		if err == nil && !h.Deleted && lost[string(e.Key)] {
			s.rows[h.Mod] = row{string(e.Key), h}
		}
	}, func(error) {})
	s.search(snap.Image.Tree(snap.Commit))
	for _, revision := range s.missing { // the snapshot has been checked, so there are none
		delete(s.rows, revision)
	}
	slices.Sort(names)
	return names
}

// build puts the records into a file. Its counters say that it has no history, so that watches
// begin anew.
func (s *salvaged) build(b *builder, c *contents) error {
	leased := map[int64]bool{}
	revisions := make([]int64, 0, len(s.rows))
	for revision := range s.rows {
		revisions = append(revisions, revision)
	}
	slices.Sort(revisions)
	var last place
	var records []format.Record
	for _, revision := range revisions {
		if at := s.at[revision]; at != last {
			last, records = at, at.tree.Records(at.page)
		}
		n := slices.IndexFunc(records, func(rec format.Record) bool { return rec.Mod == revision })
		if n < 0 {
			return errors.New("a record is gone that was there")
		}
		rec := records[n]
		rec.Key, rec.Value = bytes.Clone(rec.Key), bytes.Clone(rec.Value)
		leased[rec.Lease] = true
		if err := b.putRecord(&rec); err != nil {
			return err
		}
	}
	err := b.copyLeases(c, leased)
	counters := c.counters
	counters.Compacted, counters.Scrubbed = counters.Revision, counters.Revision
	counters.Ceiling = max(counters.Ceiling, counters.Revision)
	b.setCounters(counters)
	return err
}
