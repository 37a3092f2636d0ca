package rescue

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/mote-k8s/mote/datastore/bolt/format"
	"github.com/mote-k8s/mote/internal/durable"
)

// snapshotFile is a snapshot that was unpacked beside the store.
type snapshotFile struct {
	*contents
	file *os.File
	name string
}

func (f *snapshotFile) close() {
	f.file.Close()
	_ = os.Remove(f.file.Name())
}

// snapshot fetches the newest good snapshot and examines all of it. It returns nil if there is none
// that can be used, and remembers the reason. The error means that there is no room for one.
func (o *opening) snapshot() (*snapshotFile, error) {
	if o.options.Restore == nil {
		return nil, nil
	}
	from, name, err := o.options.Restore()
	if err != nil || from == nil {
		o.snapshotErr = err
		return nil, nil
	}
	defer from.Close()
	f, err := os.OpenFile(o.path+".snapshot", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	snap := &snapshotFile{file: f, name: name}
	size, err := io.Copy(f, from)
	if err != nil {
		snap.close()
		err = fmt.Errorf("unpack snapshot %s: %w", name, err)
		if durable.IsDiskFull(err) {
			return nil, err // it may be of use when there is room
		}
		o.snapshotErr = err
		return nil, nil
	}
	i := format.Image{File: f, Size: size}
	commits, err := i.Commits()
	if err == nil {
		snap.contents = inspect(i, commits[0], true)
		err = errors.Join(snap.findings()...)
	}
	if err != nil {
		o.snapshotErr = fmt.Errorf("snapshot %s cannot be used: %w", name, err)
		snap.close()
		return nil, nil
	}
	return snap, nil
}

// restore makes a file of a snapshot and of the frames that the log still has.
func (o *opening) restore(now *contents, cause error) error {
	snap, err := o.snapshot()
	if err != nil {
		return err
	}
	if snap == nil {
		return o.refuse(now, cause)
	}
	defer snap.close()
	frames, next, err := o.allFrames()
	if err != nil {
		return err
	}
	known := max(snap.counters.Revision, snap.counters.Ceiling)
	if now != nil && !now.damaged(format.MetaBucket) {
		known = max(known, now.counters.Revision, now.counters.Ceiling)
	}
	r := Repair{
		What: fmt.Sprintf("took snapshot %s and what the log still has: %s", snap.name, cause),
		Lost: fmt.Sprintf("what was written after revision %d, the snapshot's, and is not among the last %d transactions", snap.counters.Revision, len(frames)),
	}
	if r.Aside, err = setAsideLog(o.path, o.stamp); err != nil {
		return err
	}
	err = o.replaceFile(r, func(b *builder) error {
		counters := snap.counters
		counters.LogSequence, counters.LogMarked, counters.Ceiling = int64(next), 1, known
		return b.copyAndApply(snap.contents, counters, frames)
	})
	if err != nil {
		return err
	}
	return resetLog(logPath(o.path), next)
}

// copyAndApply puts all that c has into b, and those of frames that are newer. counters are those
// of c with the log's sequence to continue with, and a ceiling above all revisions that are known.
func (b *builder) copyAndApply(c *contents, counters format.Counters, frames []format.Frame) error {
	if err := b.copyStore(c); err != nil {
		return err
	}
	for _, f := range frames {
		if counters.Ceiling = max(counters.Ceiling, f.Revision, f.Ceiling); f.Revision <= counters.Revision {
			continue
		}
		if err := b.apply(f); err != nil {
			return err
		}
		counters.Revision = f.Revision
	}
	counters.Ceiling += RevisionGap
	b.setCounters(counters)
	return nil
}

// apply applies a frame of the log to a store that may lack the writes before the frame.
func (b *builder) apply(f format.Frame) error {
	for _, rec := range f.Records {
		rec.Prev = 0
		row := b.file.Keys.Get(rec.Key)
		if row == nil && rec.Deleted {
			continue
		}
		if row != nil {
			h, err := format.DecodeHeader(rec.Key, row)
			if err != nil {
				return err
			}
			rec.Prev = h.Mod
		}
		if err := b.putRecord(rec); err != nil {
			return err
		}
	}
	for id, l := range f.Leases {
		if err := b.file.Leases.Delete(format.RevisionKey(id)); err != nil {
			return err
		}
		if l.TTL > 0 {
			if err := b.put(format.LeasesBucket, format.RevisionKey(id), l.Encode()); err != nil {
				return err
			}
		}
	}
	return nil
}

// refuse returns the error, with advice, for a store that cannot be repaired without losing data
// whose loss could not be reported.
func (o *opening) refuse(now *contents, cause error) error {
	advice := "there is no snapshot; its files are left as they are: keep a copy, and move its folder away to begin with an empty cluster"
	if o.snapshotErr != nil {
		advice = fmt.Sprintf("%s; its files are left as they are; restore another with `mote datastore snapshot restore NAME`, see `mote datastore snapshot list`", o.snapshotErr)
	}
	if now == nil || len(now.buckets) == 0 {
		advice = "not a mote datastore, or a damaged one; " + advice
	}
	return fmt.Errorf("%w: %s", &refusedError{cause}, advice)
}

// refusedError is damage that cannot be repaired. Its message is complete.
type refusedError struct{ cause error }

func (e *refusedError) Error() string { return "it cannot be repaired: " + e.cause.Error() }

// Unwrap returns the damage.
func (e *refusedError) Unwrap() error { return e.cause }
