package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/machine"
)

// newImageCommand returns the verb for container images on this machine.
func newImageCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Short:   "Import, list and remove container images",
		GroupID: groupUse,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(
		newImageImportCommand(e), newImageListCommand(e), newImageTagCommand(e), newImageSaveCommand(e),
		newImagePinCommand(e), newImageUnpinCommand(e), newImageRemoveCommand(e), newImagePruneCommand(e),
	)
	return cmd
}

// withImages calls do with the images of the running mote.
func withImages(load func() (*machine.Machine, error), do func(*agent.ImageStore) error) error {
	m, err := load()
	if err != nil {
		return err
	}
	store, err := m.Images()
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

// needArgs requires at least least arguments, or exactly that many if exact is set. Its error has
// one line.
func needArgs(least int, exact bool, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || exact && len(args) > least {
			return fmt.Errorf("%s needs %s; see \"%s --help\"", verb(cmd), what, cmd.CommandPath())
		}
		return nil
	}
}

// eachName returns the function of a verb that calls do with each argument and prints the returned
// name.
func eachName(e *env, load func() (*machine.Machine, error), quiet *bool,
	do func(ctx context.Context, store *agent.ImageStore, name string) (string, error),
) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return withImages(load, func(store *agent.ImageStore) error {
			for _, arg := range args {
				name, err := do(cmd.Context(), store, arg)
				if err != nil {
					return err
				}
				if !*quiet {
					fmt.Fprintln(e.stdout, name)
				}
			}
			return nil
		})
	}
}
