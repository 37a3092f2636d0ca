package main

import (
	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/machine"
)

// newStopCommand returns the verb that stops the mote on this machine.
func newStopCommand(e *env) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "stop",
		Short:   "Stop mote; containers go on unless --all is given",
		Long:    "Stop the running mote and wait until it is gone. Containers go on without it and are found again at the next start.",
		GroupID: groupRun,
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&all, "all", false, "stop the containers too")
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot("stop"); err != nil {
			return err
		}
		return m.Stop(cmd.Context(), all)
	}
	return cmd
}
