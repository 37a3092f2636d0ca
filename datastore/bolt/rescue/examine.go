package rescue

import (
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/bolt/format"
)

// Examine reads all of a store that no process has open, its log too, and changes nothing: it
// reports the errors that Open would repair or refuse. It returns its findings, joined; nil is a
// sound store.
func Examine(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return Advise(path, err)
	}
	defer file.Close()
	if err := lock(file); err != nil {
		return Advise(path, err)
	}
	o := opening{path: path, file: file, options: Options{OpenLog: readOnlyLog}}
	now, _, err := o.look(true)
	switch {
	case err != nil:
		return Advise(path, err)
	case now == nil:
		return cause(nil)
	}
	found := now.findings()
	if now.damaged(format.MetaBucket) {
		return errors.Join(bounded(found)...) // it does not have the start of the log
	}
	found = append(found, o.examineLog(now)...)
	if len(found) == 0 && now.counters.Format == format.Version {
		found = o.examineOrder()
	}
	return errors.Join(bounded(found)...)
}

func (o *opening) examineLog(now *contents) []error {
	log, err := o.readLog(now)
	if err != nil {
		return []error{fmt.Errorf("the log: %w", err)}
	}
	var found []error
	if damage := log.found.Damage; damage != nil {
		found = append(found, format.Damagef("%s", oneLine(damage)))
	}
	if log.found.Torn {
		found = append(found, format.Damagef("a write at the end of the log is not whole; if the machine lost power it was never acknowledged, else the last transaction is lost"))
	}
	if err := log.close(); err != nil {
		found = append(found, err)
	}
	return found
}

// examineOrder compares the buckets of a file whose pages are sound.
func (o *opening) examineOrder() []error {
	db, err := format.OpenDB(o.path, o.file, true)
	if err != nil {
		return []error{err}
	}
	var found []error
	err = format.CatchFaults(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			found = checkOrder(tx)
			return nil
		})
	})
	if err := errors.Join(err, db.Close()); err != nil {
		found = append(found, err)
	}
	return found
}

// maxFindings limits how many findings Check and Examine report: one damaged page makes thousands.
const maxFindings = 100

// bounded cuts a list of findings off.
func bounded(found []error) []error {
	if more := len(found) - maxFindings; more > 0 {
		found = append(found[:maxFindings:maxFindings], fmt.Errorf("and %d more", more))
	}
	return found
}

// Info is the file's own description of a store.
type Info struct {
	// Format is the version of the layout.
	Format int64
	// Revision is the last that the file has. History below Compacted is gone.
	Revision, Compacted int64
	// Ceiling is above all revisions that may have been given out since; 0 is none.
	Ceiling int64
}

// Inspect reads the whole file of a store that no process has open. It returns all damage that it
// found, joined. It does not read the log: the file of a snapshot has none.
func Inspect(path string) (info Info, err error) {
	err = readFile(path, true, func(c *contents) error {
		info = infoOf(c)
		return errors.Join(c.findings()...)
	})
	return info, err
}

// Peek reads only the Info of the file of a store that no process has open.
func Peek(path string) (info Info, err error) {
	err = readFile(path, false, func(c *contents) error {
		info = infoOf(c)
		return nil
	})
	return info, err
}

func infoOf(c *contents) Info {
	return Info{c.counters.Format, c.counters.Revision, c.counters.Compacted, c.counters.Ceiling}
}

// readFile calls fn with the contents of a file if its counters are sound.
func readFile(path string, full bool, fn func(*contents) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	o := opening{path: path, file: file}
	now, _, err := o.look(full)
	switch {
	case err != nil:
		return err
	case now == nil:
		return cause(nil)
	case now.damaged(format.MetaBucket):
		return errors.Join(now.damage[format.MetaBucket]...)
	}
	return fn(now)
}

// Adopt turns the file of a snapshot at path into a store that Open opens. Its revisions begin
// above floor, so that clients that watched the replaced store read everything again.
func Adopt(path string, floor int64) error {
	file, err := lockFile(path)
	if err != nil {
		return Advise(path, err)
	}
	o := opening{path: path, file: file}
	if err := errors.Join(o.adopt(floor), o.file.Close()); err != nil {
		return Advise(path, err)
	}
	return nil
}

func (o *opening) adopt(floor int64) error {
	now, _, err := o.look(true)
	if err != nil {
		return err
	}
	if now == nil || !now.sound() {
		return cause(now)
	}
	if now.counters.Format < format.Version {
		if err := o.upgrade(now); err != nil {
			return err
		}
	}
	db, err := format.OpenDB(o.path, o.file, false)
	if err != nil {
		return err
	}
	err = format.Update(db, func(tx *format.Tx) error {
		tx.Ceiling, tx.LogMarked = max(floor, tx.Revision, tx.Ceiling), 1
		return nil
	})
	return errors.Join(err, db.Close(), resetLog(logPath(o.path), uint64(now.counters.LogSequence)))
}
