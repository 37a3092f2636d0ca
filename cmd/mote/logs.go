package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/internal/logging"
	"github.com/mote-k8s/mote/machine"
)

// logFilter selects the records that "mote logs" shows.
type logFilter struct {
	component string // "" selects all
	level     slog.Level
	since     time.Time
}

// newLogsCommand returns the verb that shows the log of this machine's mote.
func newLogsCommand(e *env) *cobra.Command {
	var component, level string
	var since time.Duration
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Show what mote and its components have logged",
		Long: `Show what the mote of this machine has logged since the machine was started, also when it does not run any
more: the newest 1 to 2 MiB, kept in the directory log of run-dir. What is older is where its standard error goes: in
the journal ("journalctl -u mote"), or in /var/log/mote.log with OpenRC. The upstream components' routine is
there when the server runs with --log-level=debug. The logs of pods are shown by "mote kubectl logs".`,
		Example: `  mote logs --component scheduler
  mote logs -f --level warn
  mote logs --component kubelet --since 10m -o json`,
		GroupID: groupUse,
		Args:    noArgs,
	}
	cmd.Flags().StringVarP(&component, "component", "c", "", "show one component only; \"kube-\" may be left out")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is logged from now on")
	cmd.Flags().DurationVar(&since, "since", 0, "show what is not older than this, as 90s, 10m, 2h")
	cmd.Flags().StringVar(&level, "level", "debug", "least level that is shown ("+strings.Join(logging.Levels(), ", ")+")")
	// These calls fail only for a flag that does not exist.
	levels := cobra.FixedCompletions(logging.Levels(), cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc("level", levels); err != nil {
		panic(err)
	}
	output := outputFlag(cmd)
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains(logging.Levels(), level) {
			return fmt.Errorf("--level: %q is not one of %s", level, strings.Join(logging.Levels(), ", "))
		}
		m, err := load()
		if err != nil {
			return err
		}
		filter := logFilter{}
		if err := filter.level.UnmarshalText([]byte(level)); err != nil {
			return fmt.Errorf("--level: %w", err)
		}
		if since > 0 {
			filter.since = time.Now().Add(-since)
		}
		if component != "" {
			if filter.component, err = findComponent(cmd.Context(), m, component); err != nil {
				return logHint(err, m)
			}
		}
		return logHint(logging.Read(cmd.Context(), m.LogDir(), follow, func(r logging.Record) error {
			switch {
			case !filter.shows(r):
				return nil
			case output.json() && r.OfNobody():
				return nil // not JSON
			case output.json():
				_, err := fmt.Fprintf(e.stdout, "%s\n", r.Line)
				return err
			}
			return r.WriteText(e.stdout)
		}), m)
	}
	return cmd
}

// shows reports whether the filter selects a record. The output of a crash belongs to every
// component.
func (f logFilter) shows(r logging.Record) bool {
	return (f.component == "" || f.component == r.Component || r.OfNobody()) &&
		r.Level >= f.level && !r.Time.Before(f.since)
}

// findComponent returns the name under which the component called name logs. A component that has
// not logged yet is known only while mote runs.
func findComponent(ctx context.Context, m *machine.Machine, name string) (string, error) {
	known := logging.Components()
	err := logging.Read(ctx, m.LogDir(), false, func(r logging.Record) error {
		if r.Component != "" && !slices.Contains(known, r.Component) {
			known = append(known, r.Component)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if r, err := m.Status(ctx); err == nil {
		for _, c := range r.Components {
			known = append(known, c.Name)
		}
	}
	for _, candidate := range []string{name, "kube-" + name} {
		if slices.Contains(known, candidate) {
			return candidate, nil
		}
	}
	slices.Sort(known)
	return "", fmt.Errorf("no component is called %q; there are %s", name, strings.Join(slices.Compact(known), ", "))
}

// logHint adds the next step to the error for a log that is missing or that this user may not read.
func logHint(err error, m *machine.Machine) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no log in %s: since this machine was started, mote has not run, or could not start; \"mote server\" starts it, or says why not", m.LogDir())
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; try \"sudo mote logs\"", err)
	}
	return err
}
