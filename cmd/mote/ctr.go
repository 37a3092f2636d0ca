package main

import (
	"github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/spf13/cobra"
	"github.com/urfave/cli/v2"
)

// newCtrCommand returns containerd's ctr, configured for mote's containerd and the namespace of
// Kubernetes.
func newCtrCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "ctr",
		Short:              "Look into containerd with ctr",
		GroupID:            groupUse,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCtr(cmd, e, args)
		},
	}
}

func runCtr(cmd *cobra.Command, e *env, args []string) error {
	name, args, err := cutSandboxFlag(args)
	if err != nil {
		return err
	}
	settings, err := ambientSettings(e)
	if err != nil {
		return err
	}
	if changed, err := useSandbox(e, name, settings); err != nil {
		return err
	} else if changed {
		if settings, err = ambientSettings(e); err != nil {
			return err
		}
	}
	if err := settings.BypassProxy(); err != nil {
		return err
	}
	ctr := app.New()
	for _, f := range ctr.Flags {
		s, ok := f.(*cli.StringFlag)
		if !ok {
			continue
		}
		switch s.Name {
		case "address":
			s.Value = settings.ContainerdSocket()
		case "namespace":
			s.Value = "k8s.io"
		}
	}
	ctr.Reader, ctr.Writer, ctr.ErrWriter = e.stdin, e.stdout, e.stderr
	return ctr.RunContext(cmd.Context(), append([]string{"ctr"}, args...))
}
