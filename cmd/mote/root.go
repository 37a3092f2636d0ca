package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/mote-k8s/mote/internal/version"
	"github.com/mote-k8s/mote/machine"
	"github.com/mote-k8s/mote/machine/settings"
)

// Groups of verbs in "mote --help", in their order.
const (
	groupRun    = "run"
	groupUse    = "use"
	groupManage = "manage"
)

const versionFlag = "version"

// newRootCommand returns the command "mote" with every verb.
func newRootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:               "mote",
		Short:             "A whole Kubernetes in one file",
		Args:              cobra.ArbitraryArgs, // so that RunE can refuse them in one line
		SilenceErrors:     true,                // main prints the error
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			if cmd.Flags().Changed(versionFlag) {
				_, err := fmt.Fprintln(e.stdout, version.Get().Mote)
				return err
			}
			return cmd.Help()
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.HasParent() && cmd.Flags().Changed(versionFlag) {
				return fmt.Errorf("%s has no flag --version; try \"mote version\"", verb(cmd))
			}
			return nil
		},
	}
	// Upstream registers a flag of this name for every program that links it; mote's flag replaces
	// it.
	root.PersistentFlags().Bool(versionFlag, false, "print mote's version")
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { writeHelp(cmd.OutOrStdout(), cmd) })
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Run a cluster:"},
		&cobra.Group{ID: groupUse, Title: "Use it:"},
		&cobra.Group{ID: groupManage, Title: "Look after this machine:"},
	)
	root.AddCommand(
		newServerCommand(e),
		newRunCommand(e),
		newStopCommand(e),

		newKubectlCommand(e),
		newKubeconfigCommand(e),
		newCtrCommand(e),
		newImageCommand(e),
		newStatusCommand(e),
		newLogsCommand(e),

		newDatastoreCommand(e),
		newCertsCommand(e),
		newCheckCommand(e),
		newInstallCommand(e),
		newUninstallCommand(e),
		newResetCommand(e),
		newCompletionCommand(e),
		newVersionCommand(e),
	)
	root.AddCommand(newSandboxCommands(e)...)
	root.SetHelpCommandGroupID(groupManage)
	return root
}

// withSettings registers the settings of verb in the table, with completion, and returns a function
// that loads them once the flags are parsed.
func withSettings(cmd *cobra.Command, e *env, verb string) func() (*machine.Machine, error) {
	loader := settings.Register(cmd.Flags(), verb)
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if settings.Section(f) == "" || f.Value.Type() == "path" || f.Value.Type() == "string" {
			return // a verb's own flag, or one for which the shell completes files
		}
		complete := cobra.FixedCompletions(settings.Choices(f.Name), cobra.ShellCompDirectiveNoFileComp)
		// It fails only for a flag that does not exist or that has a function already; neither can
		// happen here.
		if err := cmd.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
			panic(err)
		}
	})
	var sandbox string
	if !slices.Contains(sandboxVerbs(), verb) {
		return func() (*machine.Machine, error) { return loadSettings(e, loader) }
	}
	cmd.Flags().StringVar(&sandbox, sandboxFlag, "", "ask the cluster of \"mote run\" with this `name`")
	return func() (*machine.Machine, error) {
		if sandbox != "" && cmd.Flags().Changed("run-dir") {
			return nil, fmt.Errorf("%s: --%s and --run-dir exclude each other", cmd.Name(), sandboxFlag)
		}
		m, err := loadSettings(e, loader)
		if err != nil {
			return nil, err
		}
		if changed, err := useSandbox(e, sandbox, m); err != nil || !changed {
			return m, err
		}
		return loadSettings(e, loader)
	}
}

// ambientSettings loads the settings of a verb whose flags all belong to another program: from the
// environment and the files.
func ambientSettings(e *env) (*machine.Machine, error) {
	return loadSettings(e, settings.Register(pflag.NewFlagSet("", pflag.ContinueOnError), ""))
}

func loadSettings(e *env, loader *settings.Loader) (*machine.Machine, error) {
	if err := settings.CheckEnviron(e.environ); err != nil {
		return nil, err
	}
	s, err := loader.Load(e.getenv)
	if err != nil {
		return nil, err
	}
	return machine.New(s, e.machine()), nil
}

// noArgs refuses arguments with an error of one line.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, but got %q; see \"%s --help\"", verb(cmd), args[0], cmd.CommandPath())
	}
	return nil
}

// verb returns the name of cmd in errors: its path without the program's name, which main prints.
func verb(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

func unknownVerb(cmd *cobra.Command, word string) error {
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			known = append(known, c.Name())
		}
	}
	if near := settings.Nearest(word, known); near != "" {
		return fmt.Errorf("unknown command %q; did you mean \"%s %s\"?", word, cmd.CommandPath(), near)
	}
	return fmt.Errorf("unknown command %q; \"%s --help\" lists what there is", word, cmd.CommandPath())
}

// flagError rewords pflag's errors: they name the flag, the verb and the next step.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	see := fmt.Sprintf("see \"%s --help\"", cmd.CommandPath())
	var unknown *pflag.NotExistError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		var known []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { known = append(known, f.Name) })
		name := unknown.GetSpecifiedName()
		if near := settings.Nearest(name, known); near != "" {
			return fmt.Errorf("%s has no flag --%s; did you mean --%s?", verb(cmd), name, near)
		}
		return fmt.Errorf("%s has no flag --%s; %s", verb(cmd), name, see)
	case errors.As(err, &invalid):
		return fmt.Errorf("--%s: %w", invalid.GetFlag().Name, invalid.Unwrap())
	}
	return fmt.Errorf("%s: %w; %s", verb(cmd), err, see)
}

// writeHelp writes the description of a verb, its flags by section, and the verbs below it by
// group.
func writeHelp(w io.Writer, cmd *cobra.Command) {
	about := cmd.Long
	if about == "" {
		about = cmd.Short
	}
	fmt.Fprintf(w, "%s\n\nUsage:\n  %s\n", strings.TrimSpace(about), usageLine(cmd))
	if cmd.Example != "" {
		fmt.Fprintf(w, "\nExamples:\n%s\n", strings.TrimRight(cmd.Example, "\n"))
	}
	for _, g := range cmd.Groups() {
		writeVerbs(w, cmd, g.ID, g.Title)
	}
	writeVerbs(w, cmd, "", "Commands:")
	for _, section := range append([]string{""}, settings.Sections()...) {
		fs := pflag.NewFlagSet(section, pflag.ContinueOnError)
		fs.SortFlags = section == ""
		cmd.Flags().SortFlags = false
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if settings.Section(f) == section && (f.Name != versionFlag || !cmd.HasParent()) {
				fs.AddFlag(f)
			}
		})
		if !fs.HasAvailableFlags() {
			continue
		}
		if section == "" {
			section = "Flags"
		}
		fmt.Fprintf(w, "\n%s:\n%s", section, fs.FlagUsages())
	}
}

func usageLine(cmd *cobra.Command) string {
	if cmd.HasAvailableSubCommands() && cmd.Use == cmd.Name() {
		return cmd.CommandPath() + " COMMAND"
	}
	return cmd.UseLine()
}

func writeVerbs(w io.Writer, cmd *cobra.Command, group, title string) {
	for _, c := range cmd.Commands() {
		if c.GroupID != group || !c.IsAvailableCommand() {
			continue
		}
		if title != "" {
			fmt.Fprintf(w, "\n%s\n", title)
			title = ""
		}
		fmt.Fprintf(w, "  %-12s %s\n", c.Name(), c.Short)
	}
}
