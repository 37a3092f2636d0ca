package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mote-k8s/mote/machine"
	"github.com/mote-k8s/mote/machine/settings"
	"github.com/mote-k8s/mote/sandbox"
)

// sandboxFlag is the flag that names a cluster of "mote run" for a verb.
const sandboxFlag = "sandbox"

// sandboxVerbs returns the verbs that work on a cluster of "mote run". kubectl and ctr, whose flags
// are upstream's, do so too.
func sandboxVerbs() []string { return []string{"status", "logs", "image"} }

// listSandboxes writes the table of "mote run --list".
func listSandboxes(e *env, quiet bool) error {
	all, err := sandbox.List()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(e.stdout, 0, 0, 3, ' ', 0)
	if !quiet {
		fmt.Fprintln(t, "NAME\tREADY\tAGE\tPID\tAPI\tDIR")
	}
	for _, i := range all {
		if quiet {
			fmt.Fprintln(t, i.Name)
			continue
		}
		fmt.Fprintf(t, "%s\t%t\t%s\t%d\t%s\t%s\n", i.Name, i.Ready, age(time.Now(), i.Started), i.PID, i.Server, i.Dir)
	}
	return t.Flush()
}

// useSandbox points the verb at the sandbox called name. Without a name it points the verb at the
// machine's only sandbox, and prints that, if no other cluster can be meant: no setting or variable
// names a cluster, and this machine has none.
func useSandbox(e *env, name string, m *machine.Machine) (changed bool, err error) {
	if name != "" {
		found, err := sandbox.Find(name)
		if errors.Is(err, fs.ErrPermission) {
			return false, fmt.Errorf("--%s: %w; run as root", sandboxFlag, err)
		}
		if err != nil {
			return false, fmt.Errorf("--%s: %w", sandboxFlag, err)
		}
		return true, e.enter(found)
	}
	if !elsewhereImpossible(e, m) {
		return false, nil
	}
	all, err := sandbox.List()
	if err != nil || len(all) == 0 {
		return false, nil // only root can list them
	}
	if len(all) > 1 {
		var names []string
		for _, i := range all {
			names = append(names, i.Name)
		}
		return false, fmt.Errorf("this machine has no cluster of its own, and %d of \"mote run\"; name one: --%s %s", len(all), sandboxFlag, strings.Join(names, ", "))
	}
	fmt.Fprintf(e.stderr, "mote: this machine has no cluster of its own; this is %s of \"mote run\"\n", all[0].Name)
	return true, e.enter(all[0])
}

// elsewhereImpossible reports whether neither the settings nor the machine have another cluster.
func elsewhereImpossible(e *env, m *machine.Machine) bool {
	for _, name := range []string{"KUBECONFIG", "MOTE_SANDBOX", "CONTAINERD_ADDRESS"} {
		if e.getenv(name) != "" {
			return false
		}
	}
	if m.RunDir != settings.Default("run-dir") || m.DataDir != settings.Default("data-dir") {
		return false
	}
	return absent(m.StatusSocket()) && absent(m.Kubeconfig()) && absent(m.LogDir())
}

func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// enter sets the variables of i, for the settings of this process and the programs that it starts.
func (e *env) enter(i sandbox.Info) error {
	values := make(map[string]string)
	for _, entry := range i.Env() {
		name, value, _ := strings.Cut(entry, "=")
		values[name] = value
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("use %s: %w", i.Name, err)
		}
	}
	before := e.getenv
	e.getenv = func(name string) string {
		if value, ok := values[name]; ok {
			return value
		}
		return before(name)
	}
	return nil
}

// cutSandboxFlag removes --sandbox from the front of another program's arguments, the only position
// where it cannot be meant for that program.
func cutSandboxFlag(args []string) (name string, rest []string, err error) {
	if len(args) == 0 {
		return "", args, nil
	}
	if value, ok := strings.CutPrefix(args[0], "--"+sandboxFlag+"="); ok {
		return value, args[1:], nil
	}
	if args[0] != "--"+sandboxFlag {
		return "", args, nil
	}
	if len(args) == 1 {
		return "", nil, fmt.Errorf("--%s needs the name of a cluster; \"mote run --list\" shows them", sandboxFlag)
	}
	return args[1], slices.Clone(args[2:]), nil
}
