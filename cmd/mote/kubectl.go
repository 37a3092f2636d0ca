package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // credential plugins, as in kubectl itself
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/utils/exec"

	"github.com/mote-k8s/mote/internal/regular"
	"github.com/mote-k8s/mote/machine"
)

// newKubectlCommand returns upstream's kubectl, with its own arguments, output and exit codes.
func newKubectlCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl",
		Short:              "Talk to the cluster with kubectl",
		GroupID:            groupUse,
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			name, args, err := cutSandboxFlag(args)
			if err != nil {
				return err
			}
			advice, err := defaultKubeconfig(e, name)
			if err != nil {
				return err
			}
			explainFailure(advice)
			return runKubectl(e, args)
		},
	}
}

// advice is a message for a kubectl command that fails at a server that its arguments did not name.
type advice struct {
	server string // HOST:PORT, as in kubectl's message
	text   func() string
}

// noKubeconfig is a kubeconfig without clusters.
const noKubeconfig = "/dev/null"

// nobodysServer is the server that kubectl uses when nothing names a cluster. A user may have named
// the same server; then one line too many is printed.
const nobodysServer = "localhost:8080"

// defaultKubeconfig selects this machine's cluster for kubectl and the plugins that it starts, and
// no other cluster: if mote has none, "mote kubectl" does not use the cluster of ~/.kube/config
// instead. A program called kubectl does, as everywhere. sandbox names a cluster of "mote run" to
// use instead. A --kubeconfig flag still overrides the variable.
func defaultKubeconfig(e *env, sandbox string) (advice, error) {
	if e.getenv("KUBECONFIG") != "" && sandbox == "" {
		return advice{}, nil
	}
	m, err := ambientSettings(e)
	if err == nil && (sandbox != "" || filepath.Base(e.args[0]) != "kubectl") {
		if changed, err := useSandbox(e, sandbox, m); err != nil || changed {
			return advice{}, err
		}
	}
	if err == nil {
		err = useKubeconfig(e, m)
	}
	var missing string
	switch {
	case err == nil:
		return stoppedAdvice(m), nil
	case m == nil && errors.Is(err, fs.ErrPermission):
		missing = `only root can read the settings of the cluster here: try "sudo mote kubectl", or name a kubeconfig with KUBECONFIG`
	case m == nil:
		return advice{}, err
	case errors.Is(err, fs.ErrPermission):
		missing = fmt.Sprintf(`the cluster's kubeconfig is not for this user (%v): try "sudo mote kubectl", or name another with KUBECONFIG`, err)
	default:
		missing = fmt.Sprintf(`there is no kubeconfig of a cluster here (%v): "sudo mote server" makes one, MOTE_DATA_DIR names another data directory, KUBECONFIG another kubeconfig`, err)
	}
	if filepath.Base(e.args[0]) != "kubectl" {
		if err := os.Setenv("KUBECONFIG", noKubeconfig); err != nil {
			return advice{}, err
		}
	}
	return advice{nobodysServer, func() string { return missing }}, nil
}

// useKubeconfig gives kubectl the kubeconfig of the cluster of m, if this user may read it.
func useKubeconfig(e *env, m *machine.Machine) error {
	f, err := regular.Open(m.Kubeconfig())
	if err != nil {
		return err
	}
	f.Close()
	if err := m.BypassProxy(apiServer(m)); err != nil {
		return err
	}
	return os.Setenv("KUBECONFIG", m.Kubeconfig())
}

// stoppedAdvice reports that mote is stopped when its API cannot be reached.
func stoppedAdvice(m *machine.Machine) advice {
	u, err := url.Parse(apiServer(m))
	if err != nil {
		return advice{}
	}
	return advice{u.Host, func() string {
		if pid, err := m.Holder(); err != nil || pid != 0 {
			return ""
		}
		return `mote is stopped; start it with "mote server", or "systemctl start mote" where it is installed as a service`
	}}
}

// apiServer returns the URL in the kubeconfig of m, or "" if the file cannot be read: kubectl
// reports the reason.
func apiServer(m *machine.Machine) string {
	config, err := clientcmd.BuildConfigFromFlags("", m.Kubeconfig())
	if err != nil {
		return ""
	}
	return config.Host
}

// explainFailure adds the advice to kubectl's error when kubectl fails at the server of the advice.
func explainFailure(a advice) {
	if a.server == "" {
		return
	}
	cmdutil.BehaviorOnFatal(func(message string, code int) {
		if strings.Contains(message, a.server) {
			if text := a.text(); text != "" {
				message = strings.TrimSuffix(message, "\n") + "\nmote: " + text
			}
		}
		cmdutil.DefaultBehaviorOnFatal() // prints, and ends the process
		cmdutil.CheckErr(exec.CodeExitError{Err: errors.New(message), Code: code})
	})
}

func runKubectl(e *env, args []string) error {
	// kubectl handles plugins and .kuberc while it makes the command, before flags are parsed.
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
