// Command mote runs a whole Kubernetes node in one process and is the client for it.
//
// The package owns the verbs, one file for each: they parse, call and print. Package machine
// implements the node and its operations, package sandbox the clusters of "mote run".
//
// Start reading at run below, then at the verb's file: "mote server" is server.go.
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

// env is the environment of a verb: arguments, streams and variables.
type env struct {
	args           []string // the whole command line
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string
	environ        []string // NAME=value, to find misspelt names
}

// machine returns the part of e that package machine needs.
func (e *env) machine() machine.Env {
	return machine.Env{Args: e.args, Stderr: e.stderr, Terminal: isTerminal(e.stderr), Getenv: e.lookUp, Steps: newSteps(e)}
}

// lookUp calls getenv at the time of the call, for callers that keep the function: a sandbox that
// is entered later then counts too.
func (e *env) lookUp(name string) string { return e.getenv(name) }

// exitError ends the program with a code of its own. With a nil err nothing is printed: the verb
// has printed it already.
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
// called kubectl or ctr acts as that verb, so a link is enough to install it.
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

// exitCode prints err in one line on stderr and returns the process's exit code.
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
