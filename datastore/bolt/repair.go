package bolt

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/mote-k8s/mote/datastore/wal"
	"github.com/mote-k8s/mote/internal/durable"
)

// Repair is what a start did to damaged files.
type Repair struct {
	Time time.Time `json:"time"`
	// What was damaged and done about it.
	What string `json:"what"`
	// Lost says what is gone; empty is nothing that anybody was promised.
	Lost string `json:"lost,omitempty"`
	// Aside are the damaged files, as they were.
	Aside []string `json:"aside,omitempty"`
}

// RevisionGap is how far revisions jump when it is not known how many were given out: more than both files of the log can have
// promised, and than are given out between a snapshot and a repair or a restore.
const RevisionGap = 1 << 30

// asideTime is how the names of files that are set aside end.
const asideTime = "20060102T150405Z"

func (o *opening) repaired(r Repair) {
	r.Time = time.Now().UTC()
	o.note(r)
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
	o.note(r)
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
	if now != nil && now.counters[metaFormat] == formatUnsummed {
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
		if snap.counters[metaFormat] == formatUnsummed {
			return false, nil // single records of it prove nothing
		}
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
	s.ceiling = known + RevisionGap
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
	return durable.SyncDir(dirOf(s.path))
}
