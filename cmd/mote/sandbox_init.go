package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/sandbox"
)

// newSandboxCommands returns the verbs under which package sandbox executes this file.
func newSandboxCommands(e *env) []*cobra.Command {
	return []*cobra.Command{
		{
			Use:    sandbox.VerbKeeper + " ID",
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				return sandbox.Keep(args[0], e.stdin, e.stdout)
			},
		},
		{
			Use:    sandbox.VerbInit,
			Hidden: true,
			Args:   cobra.NoArgs,
			RunE:   func(*cobra.Command, []string) error { return becomeServer(e) },
		},
	}
}

// becomeServer turns this process, the first of a sandbox, into the sandbox's server.
func becomeServer(e *env) error {
	argv, environ, err := sandbox.Enter(e.stdin)
	if err != nil {
		return err
	}
	if err := unix.Exec(argv[0], argv, environ); err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	return nil
}
