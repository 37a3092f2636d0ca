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
)

// outputFlag adds -o to cmd: text, or one JSON document for programs. The returned text is valid
// once flags are parsed.
func outputFlag(cmd *cobra.Command) *format {
	f := format("text")
	cmd.Flags().VarP(&f, "output", "o", "form of the output (text, json)")
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // only for a flag that is not there
	}
	return &f
}

// format is how a verb prints its result.
type format string

// String implements pflag.Value.
func (f *format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *format) Type() string { return "format" }

// Set implements pflag.Value.
func (f *format) Set(text string) error {
	if !slices.Contains([]string{"text", "json"}, text) {
		return fmt.Errorf("%q is not one of text, json", text)
	}
	*f = format(text)
	return nil
}

func (f *format) json() bool { return *f == "json" }

// printJSON writes v as one indented document.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// isTerminal tells whether a person watches w or types at it.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// steps tells people what a verb does, a line for each step, on stderr: stdout is for data.
type steps struct {
	w        io.Writer
	terminal bool
}

func newSteps(e *env) *steps { return &steps{w: e.stderr, terminal: isTerminal(e.stderr)} }

// do runs one step. On a terminal its line gets a tick or a cross; elsewhere it is printed when done.
func (s *steps) do(what string, step func() error) error {
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

// oneLine folds an error's lines: what several parts said at once is still one error to the user.
func oneLine(err error) string {
	lines := strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' })
	for i, l := range lines {
		lines[i] = strings.TrimSpace(l)
	}
	return strings.Join(lines, "; ")
}

// long is do for work that says how far it is: on a terminal its line has the percentage. Quiet work prints nothing.
func (s *steps) long(what string, quiet bool, work func(progress func(done, all int64)) error) error {
	if quiet {
		return work(func(int64, int64) {})
	}
	if !s.terminal {
		return s.do(what, func() error { return work(func(int64, int64) {}) })
	}
	shown := int64(-1)
	return s.do(what, func() error {
		return work(func(done, all int64) {
			if percent := done * 100 / max(all, 1); percent != shown {
				shown = percent
				fmt.Fprintf(s.w, "\r   %s [%-20s] %3d %%", what, strings.Repeat("#", int(percent/5)), percent)
			}
		})
	})
}
