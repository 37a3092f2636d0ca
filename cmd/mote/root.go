package main

import (
	"github.com/spf13/cobra"
)

// Groups of verbs in "mote --help", in their order.
const (
	groupRun    = "run"
	groupUse    = "use"
	groupManage = "manage"
)

// defaultDataDir and defaultRunDir are where a machine's one cluster lives.
const (
	defaultDataDir = "/var/lib/mote"
	defaultRunDir  = "/run/mote"
)

// newRootCommand returns the command "mote" with every verb.
func newRootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:           "mote",
		Short:         "A whole Kubernetes in one file",
		SilenceErrors: true, // main prints the one line
		SilenceUsage:  true,
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run a cluster:"},
		&cobra.Group{ID: groupUse, Title: "Use it:"},
		&cobra.Group{ID: groupManage, Title: "Look after this machine:"},
	)
	root.AddCommand(
		newKubectlCommand(e),
		newCtrCommand(e),
	)
	return root
}
