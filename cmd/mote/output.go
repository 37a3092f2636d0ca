package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"
)

// outputFlag adds -o to cmd: text, one JSON document for programs, or one of the forms in more. The
// returned format is valid once flags are parsed.
func outputFlag(cmd *cobra.Command, more ...string) *format {
	f := &format{form: "text", forms: append([]string{"text", "json"}, more...)}
	cmd.Flags().VarP(f, "output", "o", "form of the output ("+strings.Join(f.forms, ", ")+")")
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(f.forms, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // only for a flag that does not exist
	}
	return f
}

// format is the output format of a verb.
type format struct {
	form  string
	forms []string
}

// String implements pflag.Value.
func (f *format) String() string { return f.form }

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

// Set implements pflag.Value.
func (f *format) Set(text string) error {
	if !slices.Contains(f.forms, text) {
		return fmt.Errorf("%q is not one of %s", text, strings.Join(f.forms, ", "))
	}
	f.form = text
	return nil
}

func (f *format) json() bool { return f.form == "json" }

// document reports whether the output is for a program.
func (f *format) document() bool { return f.form != "text" }

// print writes v in the requested format.
func (f *format) print(w io.Writer, v any) error {
	if f.form != "yaml" {
		return printJSON(w, v)
	}
	data, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

// printJSON writes v as one indented document.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// isTerminal reports whether w, an output or an input, is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// steps prints the steps of a verb for people, a line for each step, on stderr: stdout is for data.
type steps struct {
	w        io.Writer
	terminal bool
}

func newSteps(e *env) *steps { return &steps{w: e.stderr, terminal: isTerminal(e.stderr)} }

// Do runs one step. On a terminal its line gets a tick or a cross; elsewhere the line is printed
// when the step is done.
func (s *steps) Do(what string, step func() error) error {
	if s.terminal {
		fmt.Fprintf(s.w, "   %s", what)
	}
	err := step()
	switch {
	case s.terminal && err != nil:
		fmt.Fprintf(s.w, "\r\x1b[K ✗ %s\n", what)
	case s.terminal:
		fmt.Fprintf(s.w, "\r\x1b[K ✓ %s\n", what)
	case err == nil:
		fmt.Fprintln(s.w, what)
	}
	return err
}

// oneLine joins the lines of an error: errors of several components at once are still one error for
// the user.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	for i, l := range lines {
		lines[i] = strings.TrimSpace(l)
	}
	return strings.Join(lines, "; ")
}

// long runs one step like Do, for work that reports its progress: on a terminal the line shows the
// percentage. Quiet work prints nothing.
func (s *steps) long(what string, quiet bool, work func(progress func(done, all int64)) error) error {
	if quiet {
		return work(func(int64, int64) {})
	}
	if !s.terminal {
		return s.Do(what, func() error { return work(func(int64, int64) {}) })
	}
	b := &bar{w: s.w, terminal: true}
	return s.Do(what, func() error {
		return work(func(done, all int64) { b.show(what, done, all) })
	})
}
