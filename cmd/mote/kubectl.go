package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins, as in kubectl itself
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/utils/exec"
)

// newKubectlCommand returns upstream's kubectl. Its arguments, output and exit codes are its own.
func newKubectlCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl",
		Short:              "Talk to the cluster with kubectl",
		GroupID:            groupUse,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			missing, err := defaultKubeconfig(e)
			if err != nil {
				return err
			}
			if missing != "" {
				explainFailure(missing)
			}
			return runKubectl(e, args)
		},
	}
}

// defaultKubeconfig lets kubectl, and the plugins that it starts, find this machine's cluster.
// A --kubeconfig flag still wins over the variable. Without access to a cluster here kubectl's own
// defaults apply, and missing says why.
func defaultKubeconfig(e *env) (missing string, err error) {
	if e.getenv("KUBECONFIG") != "" {
		return "", nil
	}
	s, err := ambientSettings(e)
	if errors.Is(err, fs.ErrPermission) {
		return `only root can read the settings of the cluster here: try "sudo mote kubectl", or name a kubeconfig with KUBECONFIG`, nil
	}
	if err != nil {
		return "", err
	}
	f, err := os.Open(s.Kubeconfig())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf(`the cluster's kubeconfig is not for this user (%v): try "sudo mote kubectl", or name another with KUBECONFIG`, err), nil
	case err != nil:
		return fmt.Sprintf(`there is no kubeconfig of a cluster here (%v): "sudo mote server" makes one, MOTE_DATA_DIR names another data directory, KUBECONFIG another kubeconfig`, err), nil
	}
	f.Close()
	return "", os.Setenv("KUBECONFIG", s.Kubeconfig())
}

// nobodysServer is what kubectl asks when nothing names a cluster. Somebody may have named it; then a line too much is said.
const nobodysServer = "localhost:8080"

// explainFailure makes kubectl say what is missing when it fails with a server that nobody chose.
func explainFailure(missing string) {
	cmdutil.BehaviorOnFatal(func(message string, code int) {
		if strings.Contains(message, nobodysServer) {
			message = strings.TrimSuffix(message, "\n") + "\nmote: " + missing
		}
		cmdutil.DefaultBehaviorOnFatal() // which prints, and ends the process
		cmdutil.CheckErr(exec.CodeExitError{Err: errors.New(message), Code: code})
	})
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
