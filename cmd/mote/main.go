// Command mote runs a whole Kubernetes node in one process and is the client for it.
//
// The package owns the verbs, one file for each: they parse, call and print. What a node is and does lies in package machine, clusters
// of "mote run" in package sandbox.
//
// Reading starts at run below, then at the verb's file: "mote server" is server.go.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/mote-k8s/mote/machine"
)

func main() {
	err := run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr)
	os.Exit(exitCode(err, os.Stderr))
}

// env is what a verb knows of the world around it.
type env struct {
	args           []string // the whole command line
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        []string // NAME=value, for names that are misspelt
}

// machine is what the package of that name needs of e.
func (e *env) machine() machine.Env {
	return machine.Env{Args: e.args, Stderr: e.stderr, Terminal: isTerminal(e.stderr), Getenv: e.lookUp, Steps: newSteps(e)}
}

// lookUp is getenv for callers that keep it: a sandbox that is entered later counts too.
func (e *env) lookUp(name string) string { return e.getenv(name) }

// exitError ends the program with a code of its own. A nil err prints nothing: it has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// run executes the command line args, whose first element is the program's name. A file or link
// called kubectl or ctr acts as that verb, so that a link is all that it takes to have it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	e := &env{args: args, stdin: stdin, stdout: stdout, stderr: stderr, getenv: os.Getenv, environ: os.Environ()}
	name, rest := filepath.Base(args[0]), args[1:]
	if slices.Contains([]string{"kubectl", "ctr"}, name) {
		rest = append([]string{name}, rest...)
	}
	root := newRootCommand(e)
	root.SetArgs(rest)
	return root.ExecuteContext(ctx)
}

// exitCode says err in one line on stderr and returns the process's exit code.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	exit := &exitError{code: 1, err: err}
	errors.As(err, &exit)
	if exit.err != nil {
		fmt.Fprintf(stderr, "mote: %s\n", oneLine(err))
	}
	return exit.code
}
