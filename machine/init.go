package machine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mote-k8s/mote/agent/payload"
)

// ExecUnderInit replaces this process with a small program of the payload, unpacked to root, which
// runs argv as its child. The first process of a container becomes the parent of all orphans in the
// container. If mote reaped them, it would race with its components that wait for their own
// children. ExecUnderInit returns only on failure.
func ExecUnderInit(ctx context.Context, root string, argv, environ []string) error {
	dir, err := payload.Unpack(ctx, root)
	if err != nil {
		return err
	}
	err = syscall.Exec(filepath.Join(dir, "init"), append([]string{"init"}, argv...), environ)
	return fmt.Errorf("start init: %w", err)
}

// ownCommand returns the command line that started this process, with the full path of the program.
func ownCommand(args []string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return append([]string{self}, args[1:]...), nil
}
