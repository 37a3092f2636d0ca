package format

import (
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// Counters holds the numbers in the meta bucket, each a big-endian 64-bit number. The bucket is so
// small that bbolt keeps it inside the root page, which every transaction writes anyway: changing
// it is free.
type Counters struct {
	// Format is the version of the layout.
	Format int64
	// Revision is the last that this checkpoint has.
	Revision int64
	// Compacted is the revision below which history is refused.
	Compacted int64
	// Scrubbed is the revision up to which compacted history has been removed. It trails Compacted.
	Scrubbed int64
	// Ceiling is above all revisions that volatile writes may have been given since; 0 after a
	// clean stop.
	Ceiling int64
	// LogSequence is the first sequence of the write-ahead log that the file does not have.
	LogSequence int64
	// LogMarked is 1 if that sequence begins with an empty frame and ends with a mark.
	LogMarked int64
	// LogSum, KeysSum and LeasesSum are the sums over the entries of these buckets; see EntrySum.
	LogSum, KeysSum, LeasesSum uint64
}

// The names of the counters in the bucket.
const (
	nameFormat    = "format"
	nameRevision  = "revision"
	nameCompacted = "compacted"
	nameScrubbed  = "scrubbed"
	nameCeiling   = "ceiling"
	nameSequence  = "wal"
	nameMarked    = "marked"
	nameLogSum    = "sum.log"
	nameKeysSum   = "sum.keys"
	nameLeasesSum = "sum.leases"
	nameSum       = "sum" // over all the others
)

// set stores a counter by its name in the bucket. It ignores names that it does not know.
func (c *Counters) set(name string, n int64) {
	switch name {
	case nameFormat:
		c.Format = n
	case nameRevision:
		c.Revision = n
	case nameCompacted:
		c.Compacted = n
	case nameScrubbed:
		c.Scrubbed = n
	case nameCeiling:
		c.Ceiling = n
	case nameSequence:
		c.LogSequence = n
	case nameMarked:
		c.LogMarked = n
	case nameLogSum:
		c.LogSum = uint64(n)
	case nameKeysSum:
		c.KeysSum = uint64(n)
	case nameLeasesSum:
		c.LeasesSum = uint64(n)
	}
}

// CountersOf returns the counters in the meta bucket of a sound file.
func CountersOf(meta *bbolt.Bucket) Counters {
	var c Counters
	_ = meta.ForEach(func(name, value []byte) error {
		if len(value) == 8 {
			c.set(string(name), RevisionOf(value))
		}
		return nil
	})
	return c
}

// LastRevision returns Counters.Revision alone, which every list reads.
func LastRevision(meta *bbolt.Bucket) int64 {
	v := meta.Get([]byte(nameRevision))
	if len(v) != 8 {
		return 0
	}
	return RevisionOf(v)
}

// ParseCounters returns the counters among the entries of a meta bucket that nobody has verified,
// as far as they can be read. The error says that they are not those of a store (ErrNotStore), of
// another version (ErrOtherVersion), or that they differ from their sum (ErrDamaged).
func ParseCounters(entries map[string][]byte) (Counters, error) {
	var c Counters
	sum, stored, summed := uint64(0), uint64(0), false
	for name, value := range entries {
		if name != nameSum {
			sum += EntrySum([]byte(name), value)
		}
		if len(value) != 8 {
			continue
		}
		if name == nameSum {
			stored, summed = uint64(RevisionOf(value)), true
		}
		c.set(name, RevisionOf(value))
	}
	// The contents of another version are unknown. But if only the number was damaged, the rest has
	// the sum of this version.
	asOurs := sum - EntrySum([]byte(nameFormat), RevisionKey(c.Format)) + EntrySum([]byte(nameFormat), RevisionKey(Version))
	switch {
	case c.Format == VersionUnsummed && !summed, c.Format == Version && stored == sum:
		return c, nil
	case c.Format == 0 && !summed:
		return c, ErrNotStore
	case c.Format == Version || summed && stored == asOurs:
		return c, Damagef("the counters differ from their sum")
	default:
		return c, fmt.Errorf("%w %d", ErrOtherVersion, c.Format)
	}
}

// put writes the counters and their sum to the meta bucket.
func (c *Counters) put(meta *bbolt.Bucket) error {
	var err error
	sum := uint64(0)
	for _, counter := range []struct {
		name  string
		value int64
	}{
		{nameFormat, c.Format},
		{nameRevision, c.Revision},
		{nameCompacted, c.Compacted},
		{nameScrubbed, c.Scrubbed},
		{nameCeiling, c.Ceiling},
		{nameSequence, c.LogSequence},
		{nameMarked, c.LogMarked},
		{nameLogSum, int64(c.LogSum)},
		{nameKeysSum, int64(c.KeysSum)},
		{nameLeasesSum, int64(c.LeasesSum)},
	} {
		name, value := []byte(counter.name), RevisionKey(counter.value)
		sum += EntrySum(name, value)
		err = errors.Join(err, meta.Put(name, value))
	}
	return errors.Join(err, meta.Put([]byte(nameSum), RevisionKey(int64(sum))))
}
