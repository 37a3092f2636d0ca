package bolt

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mote-k8s/mote/datastore/wal"
)

// Repair is what a start did to damaged files.
type Repair struct {
	Time time.Time
	// What was damaged and done about it.
	What string
	// Lost says what is gone; empty is nothing that anybody was promised.
	Lost string
	// Aside are the damaged files, as they were.
	Aside []string
}

// Repairs returns what Open has repaired.
func (s *Store) Repairs() []Repair { return s.repairs }

// lostRevisions is how far revisions jump when it is not known how many were given out: more than both files of the log can have
// promised.
const lostRevisions = 1 << 30

// asideTime is how the names of files that are set aside end.
const asideTime = "20060102T150405Z"

func (o *opening) repaired(r Repair) {
	r.Time = time.Now().UTC()
	o.repairs = append(o.repairs, r)
	args := []any{"component", "datastore", "path", o.path, "what", r.What, "aside", r.Aside}
	if r.Lost == "" {
		slog.Warn("datastore repaired, nothing is lost", args...)
	} else {
		slog.Error("datastore repaired, data is lost", append(args, "lost", r.Lost)...)
	}
}

// tellTorn is for a log that ends in what is neither a frame nor a mark.
func (s *Store) tellTorn(o *opening) {
	s.ceiling = max(s.revision.Load(), s.ceiling) + 2*reserve // above what the lost frame may have promised
	r := Repair{
		Time: time.Now().UTC(), What: "cut off a write at the end of the log that is not whole",
		Lost: "nothing if the machine lost power, for it was never acknowledged; else the last transaction",
	}
	o.repairs = append(o.repairs, r)
	slog.Warn("datastore repaired, its log did not end well", "component", "datastore", "path", o.path, "what", r.What, "lost", r.Lost)
}

// replaceFile puts the file that fill makes in the place of a damaged one.
func (o *opening) replaceFile(r Repair, fill func(*builder) error) error {
	if err := build(o.draft(), fill); err != nil {
		return err
	}
	return o.install(r)
}

// install puts the draft in the place of a damaged file.
func (o *opening) install(r Repair) error {
	aside, err := setAside(o.path, o.stamp)
	if err != nil {
		return err
	}
	if err := o.swap(); err != nil {
		return err
	}
	r.Aside = append(r.Aside, aside)
	o.repaired(r)
	return nil
}

// repair makes a sound file of a damaged one, by the first of these that can be done. now is what the newest transaction has, or nil.
//
//	records and counters are sound                 -> the index from the records, leases from the index; nothing is lost
//	the transaction before is sound, and the log
//	has all since                                  -> that and the log; nothing is lost
//	index and counters are sound, and each record
//	that is needed is found, anywhere in the file  -> those, without history; nothing is lost
//	... with the help of a snapshot                -> what could not be found is as in the snapshot, or lost
//	the transaction before is sound                -> that; what was written since is lost
//	there is a snapshot                            -> that and what the log still has
//	else                                           -> refused
func (o *opening) repair(now *contents, roots []root) error {
	cause := o.cause(now)
	if now != nil && now.counters[metaFormat] < formatSums {
		return fmt.Errorf("%w; of format %d, it cannot be repaired", cause, now.counters[metaFormat])
	}
	if now != nil && !now.damaged(string(bucketMeta())) && !now.damaged(string(bucketLog())) {
		r := Repair{What: "rebuilt what was damaged of the file: " + cause.Error()}
		if now.damaged(string(bucketLeases())) {
			r.Lost = "when leases end: they begin anew, with an hour"
		}
		return o.replaceFile(r, func(b *builder) error { return b.copyStore(now) })
	}
	before := o.before(roots)
	if before != nil {
		log, err := o.readLog(before)
		if err != nil {
			return err
		}
		log.close()
		if log.found.Damage == nil && !log.found.Torn {
			return o.replaceFile(Repair{What: "went back to the transaction before, and read the log again: " + cause.Error()},
				func(b *builder) error { return b.copyStore(before) })
		}
	}
	if now != nil && !now.damaged(string(bucketMeta())) && !now.damaged(string(bucketKeys())) {
		done, err := o.salvage(now, cause)
		if done || err != nil {
			return err
		}
	}
	if before != nil {
		return o.replaceFile(Repair{
			What: "went back to the transaction before: " + cause.Error(), Lost: "what was written since, but for what the log has",
		}, func(b *builder) error { return b.copyStore(before) })
	}
	return o.restore(now, cause)
}

// cause sums up what is wrong.
func (o *opening) cause(now *contents) error {
	if now == nil {
		return unsound("neither header is whole")
	}
	found := now.findings()
	if len(found) > 1 {
		return fmt.Errorf("%w (and %d more)", found[0], len(found)-1)
	}
	return found[0]
}

// before returns the transaction before the last, if it is sound.
func (o *opening) before(roots []root) *contents {
	if len(roots) < 2 {
		return nil
	}
	before := o.image.inspect(roots[1], true)
	// Its free pages are not its own any more.
	delete(before.damage, outside)
	if !before.sound() || before.counters[metaFormat] != Format {
		return nil
	}
	return before
}

// salvage makes a file of the records that the index needs, wherever they are. The history is given up. It returns false when
// records are missing and there is no snapshot.
func (o *opening) salvage(now *contents, cause error) (bool, error) {
	found, err := o.gather(now)
	if err != nil {
		return false, err
	}
	r := Repair{What: "rebuilt the file from the records that its index names: " + cause.Error()}
	if len(found.missing) > 0 {
		snap, err := o.snapshot()
		if snap == nil || err != nil {
			return false, err
		}
		defer snap.close()
		names := found.fill(snap.contents)
		r.Lost = fmt.Sprintf("the last changes of %d objects, which are as in snapshot %s or gone: %s", len(names), snap.name, abbreviate(names))
	}
	return true, o.replaceFile(r, func(b *builder) error { return found.build(b, now) })
}

// oneLine is an error's message for a log.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// abbreviate lists some names.
func abbreviate(names []string) string {
	const most = 10
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// repairLog sets a damaged log aside. What was before the damage is in the newest layer; a new log waits beside the old one until that
// is in the file.
func (s *Store) repairLog(o *opening, found wal.Found, frames int) error {
	known := max(s.revision.Load(), s.ceiling)
	for _, payload := range found.Behind {
		if f, err := decodeFrame(payload); err == nil {
			known = max(known, f.revision, f.ceiling)
		}
	}
	s.ceiling = known + lostRevisions
	r := Repair{
		What: "set the log aside from where it is damaged: " + oneLine(found.Damage),
		Lost: fmt.Sprintf("what was written after revision %d and not read again; %d transactions before the damage were kept, and %d behind it can be read in the files that were set aside", s.revision.Load(), frames, len(found.Behind)),
	}
	for _, name := range logNames(logPath(s.path)) {
		aside, err := setAside(name, o.stamp)
		if err != nil {
			return err
		}
		r.Aside = append(r.Aside, aside)
	}
	draft := logPath(s.path) + ".new"
	files, err := emptyLog(draft)
	if err != nil {
		return err
	}
	if s.wal, err = wal.Create(files, found.Next); err != nil {
		return errors.Join(err, files[0].Close(), files[1].Close())
	}
	if err := s.saveFirst(); err != nil {
		return errors.Join(err, s.wal.Close())
	}
	if s.pending != nil { // the old log is still needed, and cannot be
		return errors.Join(s.pending.err, s.wal.Close())
	}
	for i, name := range logNames(logPath(s.path)) {
		if err := os.Rename(logNames(draft)[i], name); err != nil {
			return errors.Join(err, s.wal.Close())
		}
	}
	o.repaired(r)
	return syncDir(dirOf(s.path))
}

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
// is not sound.
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
	size, err := io.Copy(f, from)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("unpack snapshot %s: %w", name, err)
	}
	snap := &snapshotFile{file: f, name: name}
	i := image{f, size}
	roots, err := i.roots()
	if err == nil {
		snap.contents = i.inspect(roots[0], true)
		err = errors.Join(snap.findings()...)
	}
	if err == nil && snap.counters[metaFormat] != Format {
		err = fmt.Errorf("%w %d", errOtherFormat, snap.counters[metaFormat])
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
			metaRevision: revision, metaCompacted: snap.counters[metaCompacted], metaWAL: int64(next), metaMarked: 1, metaCeiling: known + lostRevisions,
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
