package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/machine"
	"github.com/mote-k8s/mote/sandbox"
)

// newSandboxCommands returns the verbs with which package sandbox executes this program.
func newSandboxCommands(e *env) []*cobra.Command {
	return []*cobra.Command{
		{
			Use:    sandbox.VerbKeeper + " ID NAME",
			Hidden: true,
			Args:   cobra.ExactArgs(2),
			RunE: func(_ *cobra.Command, args []string) error {
				return sandbox.Keep(args[0], args[1], e.stdin, e.stdout)
			},
		},
		{
			Use:    sandbox.VerbInit,
			Hidden: true,
			Args:   cobra.NoArgs,
			RunE:   func(cmd *cobra.Command, _ []string) error { return becomeServer(cmd.Context(), e) },
		},
	}
}

// becomeServer turns this process, the first of a sandbox, into the sandbox's init, which runs its
// server.
func becomeServer(ctx context.Context, e *env) error {
	argv, environ, err := sandbox.Enter(e.stdin)
	if err != nil {
		return err
	}
	// A sandbox has the default directories: this machine's settings do not apply in it.
	return machine.ExecUnderInit(ctx, layout.Data(layout.DefaultData).Payload(), argv, environ)
}
