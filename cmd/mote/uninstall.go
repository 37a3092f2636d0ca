package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/machine"
)

// newUninstallCommand returns the verb that removes the mote service.
func newUninstallCommand(e *env) *cobra.Command {
	i := machine.Installer{Env: e.machine()}
	var withData, yes bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take back what install did",
		Long: `Stop the service and remove the files that "mote install" wrote. The cluster's data stay, unless --reset is given,
and containers go on until then.`,
		GroupID: groupManage,
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&i.Root, "root", "/", "uninstall from the machine whose root `directory` this is")
	cmd.Flags().BoolVar(&withData, "reset", false, "remove the cluster with its data too, as \"mote reset\" does")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before --reset")
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot("uninstall"); err != nil {
			return err
		}
		here := filepath.Clean(i.Root) == "/"
		if here && withData {
			if err := reset(cmd.Context(), e, m, yes, true); err != nil {
				return err
			}
		} else if here {
			if err := m.StopService(cmd.Context()); err != nil {
				return err
			}
		}
		return i.Uninstall(cmd.Context())
	}
	return cmd
}
