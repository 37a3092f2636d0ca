package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/machine"
)

// newCheckNetCommand returns the verb that tests the running cluster's network.
func newCheckNetCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "net",
		Short: "Try the running cluster's network: pods, Services, DNS",
		Long: `Try what pods expect of the running cluster's network: the node and pods reach pods, Services, NodePorts, the
API and DNS. Two small pods of an image that every node has are started for that, in a namespace of their own, and
taken away again. Nothing is pulled, and no internet is needed. The exit code is 1 when anything fails.`,
		Args: noArgs,
	}
	output := outputFlag(cmd)
	load := withSettings(cmd, e, "status")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := machine.RequireRoot("check net"); err != nil {
			return err
		}
		m, err := load()
		if err != nil {
			return err
		}
		// On interrupt, delete the test pods first. A second signal kills the process.
		ctx, restore := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer restore()
		quiet := context.AfterFunc(ctx, func() {
			restore()
			fmt.Fprintln(e.stderr, "cleaning up; this takes some seconds")
		})
		defer quiet() // before restore, which ends ctx too
		findings, err := m.CheckNetwork(ctx)
		if err != nil {
			return err
		}
		return tellFindings(e, findings, output.json(), "the network does not work as it should")
	}
	return cmd
}
