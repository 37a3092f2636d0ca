package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
)

// newCheckCommand returns the verb that checks whether this machine can run mote.
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
		m, err := load()
		if err != nil {
			return err
		}
		return tellFindings(e, m.Check(), output.json(), "mote would not start here")
	}
	return cmd
}

// tellFindings prints findings. If any failed, it returns an error with verdict and their names.
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
