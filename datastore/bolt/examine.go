package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"go.etcd.io/bbolt"

	"github.com/mote-k8s/mote/datastore/wal"
)

// Examine reads all of a store that nobody has open, its log too, and changes nothing: what Open would repair, or refuse, is told
// before. It returns all that it found, joined; nil is a sound store.
func Examine(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return advise(path, err)
	}
	defer file.Close()
	if err := lock(file); err != nil {
		return advise(path, err)
	}
	o := opening{path: path, file: file, options: Options{openLog: readLogFiles}}
	now, _, err := o.look(true)
	switch {
	case err != nil:
		return advise(path, err)
	case now == nil:
		return o.cause(nil)
	}
	found := now.findings()
	if now.damaged(string(bucketMeta())) {
		return errors.Join(bounded(found)...) // it does not say where the log begins
	}
	found = append(found, o.examineLog(now)...)
	if len(found) == 0 && now.counters[metaFormat] == Format {
		found = o.examineOrder()
	}
	return errors.Join(bounded(found)...)
}

// readLogFiles opens the log's files for reading alone.
func readLogFiles(path string) (wal.Files, error) {
	files, err := wal.ReadFiles(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errNoLog, err)
	}
	return files, err
}

func (o *opening) examineLog(now *contents) []error {
	log, err := o.readLog(now)
	if err != nil {
		return []error{fmt.Errorf("the log: %w", err)}
	}
	var found []error
	if damage := log.found.Damage; damage != nil {
		found = append(found, fmt.Errorf("%w: %s", ErrDamaged, oneLine(damage)))
	}
	if log.found.Torn {
		found = append(found, fmt.Errorf("%w: a write at the end of the log is not whole; if the machine lost power it was never acknowledged, else the last transaction is lost", ErrDamaged))
	}
	if err := log.close(); err != nil {
		found = append(found, err)
	}
	return found
}

// examineOrder compares the parts of a file whose pages are sound.
func (o *opening) examineOrder() []error {
	settings := options()
	settings.ReadOnly = true
	db, err := openDB(o.path, o.file, settings)
	if err != nil {
		return []error{err}
	}
	var found []error
	err = withFaults(func() error {
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

// bounded cuts a list of findings off.
func bounded(found []error) []error {
	if more := len(found) - maxFindings; more > 0 {
		found = append(found[:maxFindings:maxFindings], fmt.Errorf("and %d more", more))
	}
	return found
}
