package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/internal/component"
	"github.com/mote-k8s/mote/machine"
)

// newStatusCommand returns the verb that shows the status of the mote on this machine.
func newStatusCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show how the cluster on this machine is",
		Long:    "Show the API, the node, pods that do not run, the disk, the newest snapshot, and each component of the running mote. While the API hangs, it waits 3 seconds and shows the rest. The exit code is 1 when a component or the node is not ready.",
		GroupID: groupUse,
		Args:    noArgs,
	}
	output := outputFlag(cmd, "yaml")
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		r, err := m.Status(cmd.Context())
		if errors.Is(err, machine.ErrNotRunning) && output.document() {
			return errors.Join(output.print(e.stdout, map[string]bool{"running": false}), &exitError{code: 1})
		}
		if err != nil {
			return err
		}
		if output.document() {
			err = output.print(e.stdout, struct {
				Running bool `json:"running"`
				machine.Report
			}{true, r})
		} else {
			err = printStatus(e.stdout, r, time.Now())
		}
		if err != nil {
			return err
		}
		return notReady(r, output.document())
	}
	return cmd
}

func printStatus(w io.Writer, r machine.Report, now time.Time) error {
	fmt.Fprintf(w, "mote %s, pid %d, up %s, data in %s\n\n", r.Version.Mote, r.PID, age(now, r.Started), r.DataDir)
	if err := printOverview(w, r, now); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "PART\tSTATE\tSINCE\tMISSING")
	for _, c := range r.Components {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", c.Name, c.State, age(now, c.Since), missing(c))
	}
	state := "ready"
	if !r.Node.Ready {
		state = "not ready"
	}
	fmt.Fprintf(t, "node %s\t%s\t\t%s\n", r.Node.Name, state, r.Node.Reason)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, c := range r.Components {
		for _, trouble := range c.Trouble {
			fmt.Fprintf(w, "%s: %s\n", c.Name, trouble)
		}
	}
	for _, trouble := range r.Node.Trouble {
		fmt.Fprintf(w, "node %s: %s\n", r.Node.Name, trouble)
	}
	if r.NameNote != "" {
		fmt.Fprintf(w, "node %s: %s\n", r.Node.Name, r.NameNote)
	}
	printPods(w, r.Overview.Pods)
	for _, one := range r.Repairs {
		fmt.Fprintf(w, "\ndatastore repaired %s ago: %s\n", age(now, one.Time), machine.RepairText(one))
	}
	return nil
}

func age(now, since time.Time) time.Duration { return now.Sub(since).Round(time.Second) }

func missing(c component.Status) string {
	switch {
	case len(c.WaitingFor) > 0:
		return "waits for " + strings.Join(c.WaitingFor, ", ")
	case c.Error != "":
		return c.Error
	}
	return ""
}

// notReady returns the outcome of the verb: nil, or an error that names the components that are not
// ready.
func notReady(r machine.Report, quiet bool) error {
	if r.Ready {
		return nil
	}
	if quiet {
		return &exitError{code: 1}
	}
	var names []string
	for _, c := range r.Components {
		if c.State != component.Ready {
			names = append(names, c.Name)
		}
	}
	if !r.Node.Ready {
		names = append(names, "node "+r.Node.Name)
	}
	return fmt.Errorf("not ready: %s", strings.Join(names, ", "))
}
