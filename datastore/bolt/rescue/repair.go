package rescue

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// repair makes a sound file of a damaged one, by the first of these ways that is possible. now is
// the content of the newest commit, or nil.
//
//	records and counters are sound
//		-> the index from the records, leases from the index; nothing is lost
//	the commit before is sound, and the log has all writes since
//		-> that commit and the log; nothing is lost
//	index and counters are sound, and each record that is needed is found, anywhere in the file
//		-> these records, without history; nothing is lost
//	... with the help of a snapshot
//		-> records that were not found are as in the snapshot, or lost
//	the commit before is sound
//		-> that commit; the writes since are lost
//	there is a snapshot
//		-> the snapshot and the frames that the log still has
//	else
//		-> refused
func (o *opening) repair(now *contents, commits []format.Commit) error {
	cause := cause(now)
	if now != nil && now.counters.Format == format.VersionUnsummed {
		return fmt.Errorf("%w; of format %d, it cannot be repaired", cause, now.counters.Format)
	}
	if now != nil && !now.damaged(format.MetaBucket) && !now.damaged(format.LogBucket) {
		return o.rebuild(now, cause)
	}
	before := o.commitBefore(commits)
	if before != nil {
		complete, err := o.logComplete(before)
		if err != nil {
			return err
		}
		if complete {
			return o.goBack(before, Repair{What: "went back to the transaction before, and read the log again: " + cause.Error()})
		}
	}
	if now != nil && !now.damaged(format.MetaBucket) && !now.damaged(format.KeysBucket) {
		done, err := o.salvage(now, cause)
		if done || err != nil {
			return err
		}
	}
	if before != nil {
		return o.goBack(before, Repair{
			What: "went back to the transaction before: " + cause.Error(), Lost: "what was written since, but for what the log has",
		})
	}
	return o.restore(now, cause)
}

// rebuild makes the index and the leases from the records, as far as they are damaged.
func (o *opening) rebuild(now *contents, cause error) error {
	r := Repair{What: "rebuilt what was damaged of the file: " + cause.Error()}
	if now.damaged(format.LeasesBucket) {
		r.Lost = "when leases end: they begin anew, with an hour"
	}
	return o.replaceFile(r, func(b *builder) error { return b.copyStore(now) })
}

// goBack makes a file of the commit before the last.
func (o *opening) goBack(before *contents, r Repair) error {
	return o.replaceFile(r, func(b *builder) error { return b.copyStore(before) })
}

// commitBefore returns the commit before the last, or nil if it is not sound.
func (o *opening) commitBefore(commits []format.Commit) *contents {
	if len(commits) < 2 {
		return nil
	}
	before := inspect(o.image, commits[1], true)
	// Its free pages are not its own any more.
	delete(before.damage, elsewhere)
	if !before.sound() || before.counters.Format != format.Version {
		return nil
	}
	return before
}

// logComplete reports whether the log has all writes since a commit.
func (o *opening) logComplete(since *contents) (bool, error) {
	log, err := o.readLog(since)
	if err != nil {
		return false, err
	}
	log.close()
	return log.found.Damage == nil && !log.found.Torn, nil
}

// cause summarises the damage of a file. now is as in repair.
func cause(now *contents) error {
	if now == nil {
		return format.Damagef("neither header is whole")
	}
	found := now.findings()
	if len(found) > 1 {
		return fmt.Errorf("%w (and %d more)", found[0], len(found)-1)
	}
	return found[0]
}

// replaceFile puts the file that fill makes in the place of a damaged one, which is set aside.
func (o *opening) replaceFile(r Repair, fill func(*builder) error) error {
	if err := build(o.draft(), fill); err != nil {
		return err
	}
	aside, err := setAside(o.path, o.stamp)
	if err != nil {
		return err
	}
	if err := o.swap(); err != nil {
		return err
	}
	r.Aside = append(r.Aside, aside)
	o.repairs = reportRepair(o.path, o.repairs, r)
	return nil
}

// asideTime is the time format at the end of the names of files that are set aside.
const asideTime = "20060102T150405Z"

// setAside gives a file a second name, which stays when the first gets another file.
func setAside(path, stamp string) (string, error) {
	for n := 0; ; n++ {
		aside := path + ".damaged-" + stamp
		if n > 0 {
			aside += fmt.Sprint("-", n)
		}
		err := os.Link(path, aside)
		if err == nil {
			return aside, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("cannot set damaged file aside: %w", err)
		}
	}
}

// abbreviate lists some names.
func abbreviate(names []string) string {
	const most = 10
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
