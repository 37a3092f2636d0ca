package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/sandbox"
)

const (
	// reportTimeout bounds the report on a cluster whose command has failed: it takes a few
	// requests.
	reportTimeout = 20 * time.Second
	// artifactsTimeout bounds the time to read all objects and logs of the cluster.
	artifactsTimeout = 2 * time.Minute
)

// misplacedCommand returns the error for words after run without "--" before them. "mote run ls" is
// as often meant for another verb as for a command, and starting a whole cluster is too much for a
// mistake.
func misplacedCommand(cmd *cobra.Command, args []string, list bool) error {
	if list {
		return fmt.Errorf("run: --list starts nothing; leave out %q", args[0])
	}
	right := fmt.Sprintf("\"%s -- %s\"", cmd.CommandPath(), strings.Join(args, " "))
	for _, c := range cmd.Root().Commands() {
		if c.Name() == args[0] && c.IsAvailableCommand() && c.Name() != "kubectl" && c.Name() != "ctr" {
			return fmt.Errorf("run: %[1]q is a verb of its own: \"%[2]s %[1]s\", with --sandbox NAME for a throwaway cluster; "+
				"a command for a new cluster comes after \"--\": %[3]s", args[0], cmd.Root().Name(), right)
		}
	}
	if sandbox.LookPath(args[0]) != nil {
		return fmt.Errorf("run: a command comes after \"--\": %s; and %s is no program on PATH", right, args[0])
	}
	return fmt.Errorf("run: a command comes after \"--\": %s", right)
}

// markPrompt makes the shell of command show the sandbox in its prompt. The shell still reads its
// usual startup files first. It works for bash and shells that know ENV; other shells stay
// unchanged.
func markPrompt(s *sandbox.Sandbox, command *sandbox.Command, e *env) error {
	mark := "(mote:" + s.Name() + ") "
	switch filepath.Base(command.Args[0]) {
	case "bash":
		path, err := s.WriteFile("bashrc", []byte("if [ -f ~/.bashrc ]; then . ~/.bashrc; fi\nPS1='"+mark+"'$PS1\n"))
		if err != nil {
			return err
		}
		command.Args = append(command.Args, "--rcfile", path)
	case "sh", "dash", "ash", "ksh", "mksh":
		read, own := "unset ENV\n", e.getenv("ENV")
		if own != "" {
			quoted := "'" + strings.ReplaceAll(own, "'", `'\''`) + "'"
			read = "ENV=" + quoted + "\nif [ -f \"$ENV\" ]; then . \"$ENV\"; fi\n"
		}
		path, err := s.WriteFile("shrc", []byte(read+"PS1='"+mark+"'${PS1:-'# '}\n"))
		if err != nil {
			return err
		}
		command.Env = append(command.Env, "ENV="+path)
	}
	return nil
}

// greeting returns the one line that is printed before a shell.
func greeting(s *sandbox.Sandbox, dir string) string {
	end := "removes the cluster with all that is in it"
	if dir != "" {
		end = "stops the cluster; its state stays in " + dir
	}
	return fmt.Sprintf("A shell of this host with the throwaway cluster %s: kubectl, mote and ctr use it; \"exit\" %s.", s.Name(), end)
}

// farewell returns the one line that is printed after a shell.
func farewell(s *sandbox.Sandbox, dir string) string {
	if dir != "" {
		return fmt.Sprintf("The cluster %s is stopped; \"mote run --dir %s\" starts it again.", s.Name(), dir)
	}
	return fmt.Sprintf("The cluster %s is removed.", s.Name())
}

// interruptedCode reports whether a user ended the command on purpose.
func interruptedCode(code int) bool {
	return code == exitSignal+int(syscall.SIGINT) || code == exitSignal+int(syscall.SIGTERM) || code == exitSignal+int(syscall.SIGHUP)
}

// checkArtifacts creates the directory before the command runs: an error after an hour of tests
// would come too late.
func checkArtifacts(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("--artifacts: %w", err)
	}
	return nil
}

// writeAftermath writes information about the cluster after its command: a report if the command
// has failed, and the artifacts. Both only help a person, so an error while writing them is printed
// and does not change the exit code. A signal stops the writing early.
func writeAftermath(ctx context.Context, e *env, s *sandbox.Sandbox, artifacts string, failed bool, signals <-chan os.Signal) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	if failed {
		var report bytes.Buffer
		ctx, cancel := context.WithTimeout(ctx, reportTimeout)
		err := s.WriteReport(ctx, &report)
		cancel()
		if err != nil {
			fmt.Fprintf(e.stderr, "mote: cannot look at the cluster after the command: %s\n", oneLine(err))
		}
		if report.Len() > 0 {
			fmt.Fprintf(e.stderr, "The command has failed. The cluster at its end:\n%s", &report)
		}
		if report.Len() > 0 && artifacts == "" {
			fmt.Fprintln(e.stderr, "--artifacts DIR keeps all objects, events and logs.")
		}
	}
	if artifacts != "" {
		ctx, cancel := context.WithTimeout(ctx, artifactsTimeout)
		defer cancel()
		if err := s.WriteArtifacts(ctx, artifacts); err != nil {
			fmt.Fprintf(e.stderr, "mote: not all artifacts are in %s: %s\n", artifacts, oneLine(err))
		}
	}
}
