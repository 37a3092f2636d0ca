package rescue

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// contents is the readable content of one commit of a file.
type contents struct {
	*format.Tree
	counters format.Counters
	// buckets are the values of the bucket of buckets, which locate the buckets.
	buckets map[string][]byte
	// damage has the findings in a bucket, by its name; those of elsewhere are outside of all
	// buckets.
	damage map[string][]error
}

// elsewhere, as the name of a bucket, is the file's pages outside of all buckets.
const elsewhere = ""

// inspect reads a commit and compares it with its sums. It reads the leaves of the log only if full
// is set.
func inspect(i format.Image, commit format.Commit, full bool) *contents {
	c := &contents{Tree: i.Tree(commit), buckets: map[string][]byte{}, damage: map[string][]error{}}
	if c.Pages < commit.Pages {
		c.note(elsewhere)(format.Damagef("the file is cut off after %d of %d pages", c.Pages, commit.Pages))
	}
	c.Walk(c.Root, func(e format.Element) {
		if !e.Bucket {
			c.note(format.MetaBucket)(format.Damagef("%q is no bucket", e.Key))
			return
		}
		c.buckets[string(e.Key)] = slices.Clone(e.Value)
	}, c.note(format.MetaBucket))
	c.readCounters()
	if c.damaged(format.MetaBucket) {
		return c
	}
	c.checkBucket(format.KeysBucket, c.counters.KeysSum, true, func(e format.Element) error {
		_, err := format.DecodeHeader(e.Key, e.Value)
		return err
	})
	c.checkBucket(format.LeasesBucket, c.counters.LeasesSum, true, func(e format.Element) error {
		_, _, err := format.DecodeLease(e.Key, e.Value)
		return err
	})
	c.checkBucket(format.LogBucket, c.counters.LogSum, full, func(e format.Element) error {
		_, err := c.record(e)
		return err
	})
	c.CheckFreelist(full, c.note(elsewhere))
	return c
}

// summed reports whether the file is of a format that has checksums.
func (c *contents) summed() bool { return c.counters.Format > format.VersionUnsummed }

// record decodes an entry of the log.
func (c *contents) record(e format.Element) (format.Record, error) {
	if !c.summed() {
		return format.DecodeUnsummed(e.Value)
	}
	return format.DecodeRecord(e.Key, e.Value)
}

func (c *contents) readCounters() {
	entries := map[string][]byte{}
	c.each(format.MetaBucket, func(e format.Element) { entries[string(e.Key)] = e.Value }, c.note(format.MetaBucket))
	var err error
	c.counters, err = format.ParseCounters(entries)
	if err != nil && !c.damaged(format.MetaBucket) {
		c.note(format.MetaBucket)(err)
	}
}

// each calls fn with the entries of a bucket, and note with the errors of unreadable ones.
func (c *contents) each(bucket string, fn func(format.Element), note func(error)) {
	value, ok := c.buckets[bucket]
	if !ok {
		note(format.Damagef("the bucket is missing"))
		return
	}
	c.WalkBucket(value, func(e format.Element) {
		if e.Bucket {
			note(format.Damagef("entry %x is a bucket", e.Key))
			return
		}
		fn(e)
	}, note)
}

// checkBucket decodes the entries of a bucket and compares them with their sum. Unless full is set,
// it reads the branches alone.
func (c *contents) checkBucket(bucket string, want uint64, full bool, decode func(format.Element) error) {
	note := c.note(bucket)
	c.Shallow = !full
	defer func() { c.Shallow = false }()
	sum := uint64(0)
	c.each(bucket, func(e format.Element) {
		sum += format.EntrySum(e.Key, e.Value)
		if err := decode(e); err != nil {
			note(err)
		}
	}, note)
	if full && c.summed() && want != sum {
		note(format.Damagef("its entries differ from their sum"))
	}
}

// reread returns c for walking it once more.
func (c *contents) reread() *contents {
	again := *c
	again.Tree = c.Image.Tree(c.Commit)
	again.damage = map[string][]error{}
	return &again
}

// note returns a function that adds to the findings of a bucket.
func (c *contents) note(bucket string) func(error) {
	return func(err error) {
		name := "bucket " + bucket
		if bucket == elsewhere {
			name = "free pages"
		}
		c.damage[bucket] = append(c.damage[bucket], fmt.Errorf("%s: %w", name, err))
	}
}

func (c *contents) damaged(bucket string) bool { return len(c.damage[bucket]) > 0 }

// findings returns all damage that was found.
func (c *contents) findings() []error {
	var all []error
	for _, name := range []string{elsewhere, format.MetaBucket, format.KeysBucket, format.LeasesBucket, format.LogBucket} {
		all = append(all, c.damage[name]...)
	}
	return all
}

func (c *contents) sound() bool { return len(c.findings()) == 0 }

// unreadable returns the first finding that is an error of the disk, which gives no information
// about the data on it.
func (c *contents) unreadable() error {
	for _, err := range c.findings() {
		if !errors.Is(err, format.ErrDamaged) {
			return err
		}
	}
	return nil
}
