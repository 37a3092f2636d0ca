package bolt

import (
	"errors"

	"github.com/mote-k8s/mote/datastore/bolt/rescue"
)

// Check reads the whole file and compares pages, sums, log and index with the format's promises. It
// returns all that it found, joined; nil is a sound store. Checkpoints wait for it.
func (s *Store) Check() error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return closedError(err)
	}
	image, err := s.image()
	if err != nil {
		return errors.Join(err, tx.Rollback())
	}
	found, damaged, err := rescue.Check(image, tx)
	if damaged {
		s.damaged.Store(true)
	}
	return errors.Join(append(found, err, tx.Rollback())...)
}
