package main

import (
	"context"
	"fmt"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/internal/logging"
)

// newDatastoreCommand returns the verbs for the cluster's state.
func newDatastoreCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "datastore",
		Short: "Look at the cluster's state, check it, back it up",
		Long: `Look after the store that the cluster's state is in. Each verb works while mote runs, through its
socket, and while it is stopped, on the files in the data directory; those that need one or the other say so.`,
		GroupID: groupManage,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newDatastoreStatusCommand(e),
		newDatastoreCheckCommand(e),
		newDatastoreSnapshotCommand(e),
		newDatastoreGetCommand(e),
		newDatastoreCompactCommand(e),
		newDatastoreServeCommand(e),
		newDatastoreMigrateCommand(e),
	)
	attend(e, cmd)
	return cmd
}

// attend makes SIGINT and SIGTERM end all verbs below cmd in good order: they close the store and
// remove partial results. A second signal ends them at once. attend also routes the logs of
// libraries before any of them can log: without that, kine prints whole requests, Secrets among
// them.
func attend(e *env, cmd *cobra.Command) {
	for _, below := range cmd.Commands() {
		attend(e, below)
	}
	if cmd.HasSubCommands() {
		return
	}
	work := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := logging.Setup(e.stderr, nil, "warn", "text"); err != nil {
			return err
		}
		ctx, restore := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer restore()
		context.AfterFunc(ctx, restore)
		cmd.SetContext(ctx)
		err := work(cmd, args)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%s was interrupted", verb(cmd))
		}
		return err
	}
}

// oneArg accepts exactly one argument.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("%s needs %s; see \"%s --help\"", verb(cmd), what, cmd.CommandPath())
		case len(args) > 1:
			return fmt.Errorf("%s takes one argument, but got %q too; see \"%s --help\"", verb(cmd), args[1], cmd.CommandPath())
		}
		return nil
	}
}

// parseRevision parses a revision that a person typed.
func parseRevision(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a revision: a number from 1", text)
	}
	return n, nil
}
