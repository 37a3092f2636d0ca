package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mote-k8s/mote/agent/payload"
	"github.com/mote-k8s/mote/cmd/mote/settings"
)

// runUnderInit makes a small program of the payload the first process of this container, with mote as
// its child. Orphans of all containers end up at the first process, and reaping them would race with
// the parts of mote that wait for children of their own.
func runUnderInit(ctx context.Context, e *env, s *settings.Settings) error {
	dir, err := payload.Unpack(ctx, payloadRoot(s))
	if err != nil {
		return diskHint(fmt.Errorf("unpack programs: %w", err))
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	argv := append([]string{"init", self}, e.args[1:]...)
	err = syscall.Exec(filepath.Join(dir, "init"), argv, os.Environ())
	return fmt.Errorf("start init: %w", err)
}
