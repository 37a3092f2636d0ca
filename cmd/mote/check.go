package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/internal/inotify"
)

// newCheckCommand returns the verb that looks whether this machine can run mote.
func newCheckCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "check [net]",
		Short:   "Check whether this machine can run mote",
		Long:    "Look at everything that \"mote server\" needs from this machine, and change nothing. The exit code is 1 when it would not start.",
		GroupID: groupManage,
		Args:    noArgs,
	}
	cmd.AddCommand(newCheckNetCommand(e))
	output := outputFlag(cmd)
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(*cobra.Command, []string) error {
		s, err := load()
		if err != nil {
			return err
		}
		named, naming := checkNodeName(s)
		findings := append(agent.Check(agentConfig(named)), naming, checkDataDir(s))
		findings = append(findings, checkInotify(s))
		findings = append(findings, checkPorts(s)...)
		return tellFindings(e, findings, output.json(), "mote would not start here")
	}
	return cmd
}

// tellFindings prints findings. Its error is verdict with the names of those that failed.
func tellFindings(e *env, findings []agent.Finding, asJSON bool, verdict string) error {
	var err error
	if asJSON {
		err = printJSON(e.stdout, findings)
	} else {
		err = printFindings(e.stdout, findings)
	}
	if err != nil {
		return err
	}
	return checkOutcome(findings, asJSON, verdict)
}

// checkNodeName finds the node's name, and returns s with it.
func checkNodeName(s *settings.Settings) (*settings.Settings, agent.Finding) {
	const name = "node-name"
	named, note, err := withNodeName(s)
	if err != nil {
		return s, agent.Finding{Name: name, State: agent.StateFail, Message: err.Error()}
	}
	return named, agent.Finding{Name: name, State: agent.StateOK, Message: cmp.Or(note, "the node is called "+named.NodeName)}
}

// checkDataDir looks who has the data directory and what a first start would need of its disk.
func checkDataDir(s *settings.Settings) agent.Finding {
	const name = "data-dir"
	pid, err := holderOf(s.DataDir)
	switch {
	case err != nil:
		return agent.Finding{Name: name, State: agent.StateFail, Message: err.Error()}
	case pid != 0:
		return agent.Finding{Name: name, State: agent.StateWarn, Message: fmt.Sprintf("mote runs on %s (pid %d)", s.DataDir, pid)}
	}
	for _, check := range []func(string) error{checkNoReset, checkSpace} {
		if err := check(s.DataDir); err != nil {
			return agent.Finding{Name: name, State: agent.StateFail, Message: err.Error()}
		}
	}
	return agent.Finding{Name: name, State: agent.StateOK, Message: s.DataDir + " is free"}
}

// checkInotify looks whether a start would find what it needs of the inotify limits. The mote that runs has its share already.
func checkInotify(s *settings.Settings) agent.Finding {
	f := agent.Finding{Name: "inotify", State: agent.StateOK, Message: "there is enough for a cluster"}
	if pid, err := holderOf(s.DataDir); err == nil && pid != 0 {
		f.Message = "in use by the running mote"
	} else if err := inotify.CheckInstances(); err != nil {
		f.State, f.Message = agent.StateFail, err.Error()
	}
	if err := inotify.CheckWatches(); err != nil && f.State == agent.StateOK {
		f.State, f.Message = agent.StateWarn, err.Error()
	}
	return f
}

// checkPorts gives one finding for each port. Those of the mote that runs are its own.
func checkPorts(s *settings.Settings) []agent.Finding {
	listeners, err := readListeners()
	if err != nil {
		return []agent.Finding{{Name: "ports", State: agent.StateFail, Message: err.Error()}}
	}
	pid, _ := holderOf(s.DataDir) // its error is data-dir's finding
	var out []agent.Finding
	for _, p := range portsOf(s) {
		f := agent.Finding{Name: fmt.Sprintf("port %d", p.addr.Port()), State: agent.StateOK, Message: "free for " + p.who}
		if err := checkPort(p, listeners); err != nil && pid == 0 {
			f.State, f.Message = agent.StateFail, err.Error()
		} else if err != nil {
			f.Message = "in use by " + p.who
		}
		out = append(out, f)
	}
	return out
}

func printFindings(w io.Writer, findings []agent.Finding) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "CHECK\tSTATE\tMESSAGE")
	for _, f := range findings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", f.Name, f.State, f.Message)
	}
	return t.Flush()
}

func checkOutcome(findings []agent.Finding, quiet bool, verdict string) error {
	var failed []string
	for _, f := range findings {
		if f.State == agent.StateFail {
			failed = append(failed, f.Name)
		}
	}
	switch {
	case len(failed) == 0:
		return nil
	case quiet:
		return &exitError{code: 1}
	}
	return fmt.Errorf("%s: %s", verdict, strings.Join(failed, ", "))
}
