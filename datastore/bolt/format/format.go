// Package format is the layout of a bolt store on disk: the buckets and counters of its bbolt file,
// the records, index rows and leases in them, the frames of its write-ahead log, and bbolt's pages
// below all of that. ../../README.md describes the layout for people.
//
// It encodes, decodes and verifies. It decides nothing: package rescue examines and repairs files,
// and package bolt serves them. There are two ways in: Update and CountersOf work through bbolt,
// which trusts the file; Image reads pages and trusts none of them.
//
// Values are for one goroutine at a time. What is decoded from a bbolt transaction is valid until
// that transaction ends, unless a comment says otherwise.
//
// bbolt's pages have no checksums. So each record has one, the counters have one together, and the
// counters hold a sum over the entries of each other bucket: what a page lost, repeats or changed
// is found.
package format

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// Version is the version of the layout that mote writes.
	Version = versionSums
	// VersionUnsummed is the oldest version that mote reads. It has no checksums; a start rewrites
	// it.
	VersionUnsummed = 3
	versionSums     = 4

	// FirstRevision is the revision of an empty store: etcd's. Kubernetes refuses revision 0.
	FirstRevision = 1
)

var (
	// ErrDamaged is wrapped by every error about data that differs from what was written.
	ErrDamaged = errors.New("the datastore's file is damaged")
	// ErrNotStore means that a file is no store.
	ErrNotStore = errors.New("not a mote datastore")
	// ErrOtherVersion means that a store has a version of the layout that this mote does not read.
	ErrOtherVersion = errors.New("other format")
)

// Damagef returns an ErrDamaged with a reason.
func Damagef(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
}

// The buckets of a store's file.
const (
	// MetaBucket has the counters by name.
	MetaBucket = "meta"
	// LogBucket has the records by revision.
	LogBucket = "log"
	// KeysBucket is the index: the header of the latest version of each key.
	KeysBucket = "keys"
	// LeasesBucket has the leases by number.
	LeasesBucket = "leases"
)

// castagnoli is the polynomial for which processors have an instruction.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// EntrySum returns what an entry adds to the sum over its bucket: 2^32 and the CRC-32C of key and
// value.
func EntrySum(key, value []byte) uint64 {
	return 1<<32 | uint64(crc32.Update(crc32.Checksum(key, castagnoli()), castagnoli(), value))
}

// RevisionKey encodes a revision, a lease's number or a counter: 8 bytes, big-endian.
func RevisionKey(revision int64) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(revision))
}

// RevisionOf decodes a RevisionKey. The key must have 8 bytes.
func RevisionOf(key []byte) int64 {
	return int64(binary.BigEndian.Uint64(key))
}
