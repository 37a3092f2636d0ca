package rescue

import "github.com/mote-k8s/mote/datastore/bolt/format"

// For tests, which are outside of the package because they make stores with package bolt.
var (
	ErrOrphanLog = errOrphanLog
	SetAside     = setAside
)

// Unreadable examines a commit and returns the disk's error that was met.
func Unreadable(image format.Image, commit format.Commit) error {
	return inspect(image, commit, true).unreadable()
}
