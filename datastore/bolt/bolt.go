// Package bolt is mote's default storage engine: a multi-version key-value store with the semantics
// that etcd gives to Kubernetes and without its network protocol. A write is a frame of a
// write-ahead log; the latest writes are in memory, all others in a bbolt file, which is the log's
// checkpoint.
//
// It owns the open store: writes, reads, watches, leases, checkpoints, compaction and snapshots of
// the file. It leaves the wire protocol to package etcd, the log's files to package wal, the layout
// on disk to package format, and the question whether files are sound to package rescue, from which
// it gets them. Enter through Open; every method of Store is safe for concurrent use.
//
// Invariants:
//
//   - Each successful write gets the next revision. Revisions never repeat and never go back, also
//     not over a crash: after one, the store begins above all that it may have given out.
//   - A write is acknowledged only after its frame is on the disk (one fdatasync), unless its key
//     is volatile (Options).
//   - One goroutine writes. It takes all waiting requests into one transaction, in order; each sees
//     the effect of those before it.
//   - A watch gets every event of its range once and in order, or ends with ErrCompacted.
package bolt

import (
	"errors"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// Refusals. They leave the store unchanged; all other errors mean that the request met a broken
// store. format.ErrDamaged answers requests that met damage: damaged data is never returned.
var (
	// ErrLeaseNotFound refuses a lease that was not granted or has ended.
	ErrLeaseNotFound = errors.New("lease not found")
	// ErrLeaseExists refuses to grant a lease under a number that is taken.
	ErrLeaseExists = errors.New("lease exists")
	// ErrCompacted refuses a revision whose history has been removed.
	ErrCompacted = errors.New("revision is compacted")
	// ErrFutureRevision refuses a revision that has not been given out yet.
	ErrFutureRevision = errors.New("revision is in the future")
	// ErrInvalidKey refuses keys that are empty or longer than maxKeySize.
	ErrInvalidKey = errors.New("key is empty or too long")
	// ErrTooLarge refuses values that are longer than maxValueSize.
	ErrTooLarge = errors.New("value is too large")
	// ErrNoSpace refuses a write because the disk is full or the quota is exceeded. Later writes
	// may succeed.
	ErrNoSpace = errors.New("no space left for the datastore")
	// ErrClosed answers requests that arrive while the store closes, or later.
	ErrClosed = errors.New("datastore is closed")
)

// maxKeySize is bbolt's limit for keys, in bytes.
const maxKeySize = 32768

// maxValueSize is the longest value, in bytes. It leaves room in a frame of the log for the rest of
// a transaction. Package etcd accepts less.
const maxValueSize = 16 << 20

// KV is one version of a key. Its Value must not be changed: watchers share it.
type KV struct {
	Key   string
	Value []byte
	// Create and Mod are the revisions of the key's first version and of this one.
	Create, Mod int64
	// Version counts the writes since the key was made, from 1.
	Version int64
	// Lease is the lease that the key ends with; 0 is none.
	Lease int64
}

// Guard is a condition on the latest version of a key. If there is no such key, each of its fields
// is 0.
type Guard struct {
	Field GuardField
	Value int64
}

// GuardField is the field that a Guard compares.
type GuardField int

// The fields of a KV that a Guard can compare.
const (
	GuardMod GuardField = iota
	GuardCreate
	GuardVersion
)

// holds reports whether kv, which may be nil, fulfils g. A nil Guard always holds.
func (g *Guard) holds(kv *KV) bool {
	switch {
	case g == nil:
		return true
	case kv == nil:
		return g.Value == 0
	case g.Field == GuardCreate:
		return kv.Create == g.Value
	case g.Field == GuardVersion:
		return kv.Version == g.Value
	default:
		return kv.Mod == g.Value
	}
}

// newKV returns the version of a key that h describes, without its value.
func newKV(key string, h format.Header) *KV {
	return &KV{Key: key, Create: h.Create, Mod: h.Mod, Version: h.Version, Lease: h.Lease}
}

// kvOf returns the version of a key that a record holds, in memory that stays valid.
func kvOf(r *format.Record) *KV {
	kv := newKV(string(r.Key), r.Header)
	if !r.Deleted {
		kv.Value = r.OwnValue()
	}
	return kv
}

// Write is one change of one key.
type Write struct {
	Key string
	// Guard refuses the write unless it holds; nil is no condition.
	Guard *Guard
	// Delete removes the key, if it is there. Otherwise the key is made or replaced by Value, and
	// ends with Lease (0: never).
	Delete bool
	Value  []byte
	Lease  int64
}

// Result is the answer to a write.
type Result struct {
	// Revision is that of the write, or the current one if nothing was written.
	Revision int64
	// OK is true if the guard held.
	OK bool
	// KV is the version that was written; nil for a deletion and a refusal.
	KV *KV
	// Prev is the version that the key had before, or that a refused write met; nil means none.
	Prev *KV
}

// Event is one change. The KV of a deletion has only Key and Mod.
type Event struct {
	Deleted bool
	KV      *KV
	// Prev is the version that the key had before; nil for a creation.
	Prev *KV
}

// allKeys, as the end of a range, means no end.
const allKeys = "\x00"

// inRange reports whether key lies in [start, end). Without an end, only start itself does.
func inRange(key, start, end string) bool {
	switch end {
	case "":
		return key == start
	case allKeys:
		return key >= start
	default:
		return key >= start && key < end
	}
}
