package main

import (
	"errors"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins, as in kubectl itself
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

// newKubectlCommand returns upstream's kubectl. Its arguments, output and exit codes are its own.
func newKubectlCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl",
		Short:              "Talk to the cluster with kubectl",
		GroupID:            groupUse,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if err := defaultKubeconfig(e); err != nil {
				return err
			}
			return runKubectl(e, args)
		},
	}
}

// defaultKubeconfig lets kubectl, and the plugins that it starts, find this machine's cluster.
// A --kubeconfig flag still wins over the variable.
func defaultKubeconfig(e *env) error {
	if e.getenv("KUBECONFIG") != "" {
		return nil
	}
	s, err := ambientSettings(e)
	if errors.Is(err, fs.ErrPermission) {
		return nil // neither the settings nor the cluster are this user's
	}
	if err != nil {
		return err
	}
	f, err := os.Open(s.Kubeconfig())
	if err != nil {
		return nil // not this user's or not here: kubectl's own defaults apply
	}
	f.Close()
	return os.Setenv("KUBECONFIG", s.Kubeconfig())
}

func runKubectl(e *env, args []string) error {
	// Plugins and .kuberc are handled while the command is made, before flags are parsed.
	if _, err := logs.GlogSetter(kubectl.GetLogVerbosity(args)); err != nil {
		return err
	}
	streams := genericiooptions.IOStreams{In: e.stdin, Out: e.stdout, ErrOut: e.stderr}
	cmd := kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
		PluginHandler: kubectl.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
		Arguments:     append([]string{"kubectl"}, args...),
		ConfigFlags: genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().
			WithDiscoveryBurst(300).WithDiscoveryQPS(50).WithWarningPrinter(streams),
		IOStreams: streams,
	})
	cmd.SetArgs(args)
	cmd.SetIn(e.stdin)
	cmd.SetOut(e.stdout)
	cmd.SetErr(e.stderr)
	if err := cli.RunNoErrOutput(cmd); err != nil {
		cmdutil.CheckErr(err) // prints as kubectl does and exits with kubectl's code
	}
	return nil
}
