package main

import (
	_ "embed"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/machine"
)

// newInstallCommand returns the verb that makes mote a service of this machine.
func newInstallCommand(e *env) *cobra.Command {
	i := machine.Installer{Env: e.machine()}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install mote as a service that starts at boot",
		Long: `Copy this file to ` + machine.InstalledFile + `, write a unit for systemd or OpenRC that starts "mote server" at
boot, make kubectl a link to mote if there is no kubectl, and start it. Installing again upgrades; containers
go on meanwhile. Settings belong into /etc/mote/config.yaml.`,
		GroupID: groupManage,
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&i.Root, "root", "/", "install into the machine whose root `directory` this is, and start nothing")
	cmd.Flags().StringVar(&i.Init, "init", "auto", "service manager (auto, systemd, openrc, none)")
	cmd.Flags().BoolVar(&i.NoStart, "no-start", false, "start at the next boot only")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := machine.RequireRoot("install"); err != nil {
			return err
		}
		return i.Install(cmd.Context())
	}
	return cmd
}
