package bolt

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/mote-k8s/mote/datastore/wal"
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

// snapshot fetches the newest good snapshot and looks at all of it. It returns nil when there is none, and remembers the name of one that
// is not sound or cannot be read.
func (o *opening) snapshot() (*snapshotFile, error) {
	if o.options.Restore == nil {
		return nil, nil
	}
	from, name, err := o.options.Restore()
	if err != nil || from == nil {
		o.noSnapshot = err
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
		if isNoSpace(err) {
			return nil, err // it may be of use when there is room
		}
		o.noSnapshot = err
		return nil, nil
	}
	i := image{f, size}
	roots, err := i.roots()
	if err == nil {
		snap.contents = i.inspect(roots[0], true)
		err = errors.Join(snap.findings()...)
	}
	if err != nil {
		o.noSnapshot = fmt.Errorf("snapshot %s cannot be used: %w", name, err)
		snap.close()
		return nil, nil
	}
	return snap, nil
}

// restore makes a file of a snapshot and of what the log still has.
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
	revision := snap.counters[metaRevision]
	known := max(revision, snap.counters[metaCeiling])
	if now != nil && !now.damaged(string(bucketMeta())) {
		known = max(known, now.counters[metaRevision], now.counters[metaCeiling])
	}
	fill := func(b *builder) error {
		if err := b.copyStore(snap.contents); err != nil {
			return err
		}
		for _, f := range frames {
			if known = max(known, f.revision, f.ceiling); f.revision <= revision {
				continue
			}
			if err := b.apply(f); err != nil {
				return err
			}
			revision = f.revision
		}
		return b.counters(map[string]int64{
			metaRevision: revision, metaCompacted: snap.counters[metaCompacted], metaWAL: int64(next), metaMarked: 1, metaCeiling: known + RevisionGap,
		})
	}
	r := Repair{
		What: fmt.Sprintf("took snapshot %s and what the log still has: %s", snap.name, cause),
		Lost: fmt.Sprintf("what was written after revision %d, the snapshot's, and is not among the last %d transactions", snap.counters[metaRevision], len(frames)),
	}
	for _, name := range logNames(logPath(o.path)) {
		aside, err := setAside(name, o.stamp)
		if err != nil {
			return err
		}
		r.Aside = append(r.Aside, aside)
	}
	if err := o.replaceFile(r, fill); err != nil {
		return err
	}
	return replaceLog(logPath(o.path), next)
}

// refuse says what to do about a store that cannot be repaired without losing what nobody would know of.
func (o *opening) refuse(now *contents, cause error) error {
	advice := "there is no snapshot; its files are left as they are: keep a copy, and move its folder away to begin with an empty cluster"
	if o.noSnapshot != nil {
		advice = fmt.Sprintf("%s; its files are left as they are; restore another with `mote datastore snapshot restore NAME`, see `mote datastore snapshot list`", o.noSnapshot)
	}
	if now == nil || len(now.buckets) == 0 {
		advice = "not a mote datastore, or a damaged one; " + advice
	}
	return fmt.Errorf("%w: %s", &refusedError{cause}, advice)
}

// refusedError is damage that cannot be repaired; its message says all.
type refusedError struct{ cause error }

func (e *refusedError) Error() string { return "it cannot be repaired: " + e.cause.Error() }

// Unwrap returns the damage.
func (e *refusedError) Unwrap() error { return e.cause }

// apply does what a frame of the log says, to a store that may lack what came before the frame.
func (b *builder) apply(f frame) error {
	for _, rec := range f.records {
		rec.prev = 0
		row := b.file.keys.Get(rec.key)
		if row == nil && rec.deleted {
			continue
		}
		if row != nil {
			h, err := decodeHeader(rec.key, row)
			if err != nil {
				return err
			}
			rec.prev = h.mod
		}
		if err := errors.Join(b.put(bucketLog(), revisionKey(rec.mod), encodeStored(rec)), b.put(bucketKeys(), rec.key, encodeHeader(rec.header))); err != nil {
			return err
		}
	}
	for id, l := range f.leases {
		if err := b.file.delete(b.file.leases, revisionKey(id)); err != nil {
			return err
		}
		if l.ttl > 0 {
			if err := b.put(bucketLeases(), revisionKey(id), encodeLease(l)); err != nil {
				return err
			}
		}
	}
	return nil
}

// allFrames are all that the log's files have, whatever is missing between them, and the sequence number to go on with.
func (o *opening) allFrames() ([]frame, uint64, error) {
	files, err := o.options.openLog(logPath(o.path))
	if err != nil {
		return nil, 0, err
	}
	var frames []frame
	collect := func(payload []byte) error {
		if f, err := decodeFrame(payload); err == nil {
			frames = append(frames, f)
		}
		return nil
	}
	_, found, err := wal.Open(files, 1, false, collect)
	for _, payload := range found.Behind {
		_ = collect(payload)
	}
	slices.SortStableFunc(frames, func(a, b frame) int { return int(a.revision - b.revision) })
	return frames, found.Next, errors.Join(err, files[0].Close(), files[1].Close())
}
