package machine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mote-k8s/mote/agent/payload"
)

// ExecUnderInit becomes a small program of the payload, unpacked to root, which runs argv as its child.
// The first process of a container gets the orphans of all its containers, and reaping them in mote
// would race with those parts of mote that wait for children of their own. It returns only on failure.
func ExecUnderInit(ctx context.Context, root string, argv, environ []string) error {
	dir, err := payload.Unpack(ctx, root)
	if err != nil {
		return err
	}
	err = syscall.Exec(filepath.Join(dir, "init"), append([]string{"init"}, argv...), environ)
	return fmt.Errorf("start init: %w", err)
}

// ownCommand is the command line that started this process, with the path of the program in full.
func ownCommand(args []string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return append([]string{self}, args[1:]...), nil
}
