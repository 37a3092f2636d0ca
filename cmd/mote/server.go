package main

import (
	"github.com/spf13/cobra"
)

// newServerCommand returns the verb that runs a node.
func newServerCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a whole Kubernetes node: control plane, containers, network",
		Long: `Run a whole Kubernetes node in this process: datastore, kube-apiserver, kube-controller-manager,
kube-scheduler, kubelet, kube-proxy, containerd and the addons (DNS, storage). It is ready when "mote status" says so.
SIGTERM or ^C stops it; containers go on and are found again at the next start. A second one stops it at once.

Each setting is also a variable (--node-name: MOTE_NODE_NAME) and a key in the configuration file.`,
		GroupID: groupRun,
		Args:    noArgs,
	}
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		return m.Run(cmd.Context())
	}
	return cmd
}
