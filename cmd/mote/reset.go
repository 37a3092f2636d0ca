package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/machine"
)

// newResetCommand returns the verb that removes all files and changes of mote from this machine.
func newResetCommand(e *env) *cobra.Command {
	var yes, stopFirst bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove the cluster and everything that it left on this machine",
		Long: `Remove everything that mote made, and only that: containers, mounts, the pod network with its rules,
and the directories of data, sockets and the kubelet. What is in the cluster is lost.
An interrupted reset is finished by the next one.`,
		GroupID: groupManage,
		Args:    noArgs,
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&stopFirst, "force", false, "stop a running mote first")
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := load()
		if err != nil {
			return err
		}
		if err := machine.RequireRoot("reset"); err != nil {
			return err
		}
		return reset(cmd.Context(), e, m, yes, stopFirst)
	}
	return cmd
}

// reset removes the cluster of m, after a confirmation unless yes is set.
func reset(ctx context.Context, e *env, m *machine.Machine, yes, stopFirst bool) error {
	if yes {
		return m.Reset(ctx, stopFirst, nil)
	}
	return m.Reset(ctx, stopFirst, func(question string) error { return confirm(e, question) })
}

// confirm asks for confirmation on a terminal. Without a terminal, --yes is required.
func confirm(e *env, question string) error {
	if !isTerminal(e.stdin) {
		return errors.New("nobody to ask: standard input is no terminal; say --yes")
	}
	fmt.Fprintf(e.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(e.stdin).ReadString('\n')
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("not confirmed; nothing was removed")
	}
	return nil
}
