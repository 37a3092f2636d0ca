package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/cmd/mote/settings"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/pack"
)

// newResetCommand returns the verb that removes what mote made on this machine.
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
		s, err := load()
		if err != nil {
			return err
		}
		if err := requireRoot("reset"); err != nil {
			return err
		}
		return reset(cmd.Context(), e, s, yes, stopFirst)
	}
	return cmd
}

func reset(ctx context.Context, e *env, s *settings.Settings, yes, stopFirst bool) error {
	s, err := resumed(s)
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.DataDir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(e.stderr, "Nothing to remove: there is no data directory %s\n", s.DataDir)
		return nil
	}
	pid, err := holderOf(s.DataDir)
	if err != nil {
		return err
	}
	if pid != 0 && !stopFirst {
		return fmt.Errorf("mote is running on %s (pid %d); stop it with \"mote stop\", or reset with --force", s.DataDir, pid)
	}
	if !yes {
		if err := confirm(e, "Remove the cluster in "+s.DataDir+" with all its data?"); err != nil {
			return err
		}
	}
	if pid != 0 {
		if err := stop(ctx, e, s, false); err != nil {
			return err
		}
	}
	return removeCluster(ctx, e, s)
}

// confirm asks a person. Without one, only --yes will do.
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

// removeCluster takes the cluster away in steps that can each be repeated. The plan is there from the
// first change to the last, so that a machine that went down in between is not taken for a whole
// cluster: "mote server" refuses to start on it and "mote reset" goes on.
func removeCluster(ctx context.Context, e *env, s *settings.Settings) error {
	lock, err := takeLock(s.DataDir)
	if err != nil {
		return err
	}
	defer lock.close()
	if err := lock.writePID(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("lock data directory: %w", err)
	}
	if err := writePlan(s); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own file: %w", err)
	}
	steps, data := newSteps(e), layout.Data(s.DataDir)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"Remove containers, mounts and the pod network", func() error { return agent.Reset(ctx, agentConfig(s)) }},
		{"Remove " + s.RunDir, func() error { return removeOurs(s.RunDir, layout.OwnsRun) }},
		{"Remove " + s.DataDir, func() error { return removeOurs(s.DataDir, layout.OwnsData, data.ResetPlan(), data.Lock()) }},
		{"Remove what the packed file unpacked", func() error { return pack.Remove(exe) }},
	} {
		if err := steps.do(step.what, step.do); err != nil {
			return fmt.Errorf("%s: %w; run \"mote reset\" again when that is out of the way", strings.ToLower(step.what[:1])+step.what[1:], err)
		}
	}
	return nil
}

// removeOurs removes what mote makes in dir, and dir when that leaves it empty. What somebody else put
// there stays, as does a dir that is a mount point. The paths in last are removed after all others.
func removeOurs(dir string, owns func(name string) bool, last ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	kept := 0
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch {
		case slices.Contains(last, path):
		case !owns(entry.Name()):
			kept++
		default:
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	for _, path := range last {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if kept > 0 || isMountPoint(dir) {
		return nil
	}
	return os.Remove(dir)
}

func isMountPoint(dir string) bool {
	self, err := os.Stat(dir)
	if err != nil {
		return false
	}
	parent, err := os.Stat(filepath.Dir(dir))
	return err == nil && !sameDevice(self, parent)
}

func sameDevice(a, b fs.FileInfo) bool {
	x, ok := a.Sys().(*syscall.Stat_t)
	y, also := b.Sys().(*syscall.Stat_t)
	return ok && also && x.Dev == y.Dev
}

// plan is the plan of a reset that has begun: all that its steps need, so that resuming needs no flags.
type plan struct {
	RunDir     string `json:"runDir"`
	KubeletDir string `json:"kubeletDir"`
}

func writePlan(s *settings.Settings) error {
	err := tryWritePlan(s)
	if errors.Is(err, syscall.ENOSPC) {
		// The unpacked programs are made anew by any start, so they may go before the plan is there.
		if err := os.RemoveAll(layout.Data(s.DataDir).Payload()); err != nil {
			return fmt.Errorf("make room for the plan of the reset: %w", err)
		}
		err = tryWritePlan(s)
	}
	if err != nil {
		return diskHint(fmt.Errorf("write the plan of the reset: %w", err))
	}
	return nil
}

func tryWritePlan(s *settings.Settings) error {
	data, err := json.Marshal(plan{s.RunDir, s.KubeletDir})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(layout.Data(s.DataDir).ResetPlan(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// resumed returns s with the directories of a reset that was interrupted, if there was one.
func resumed(s *settings.Settings) (*settings.Settings, error) {
	data, err := os.ReadFile(layout.Data(s.DataDir).ResetPlan())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the plan of the reset: %w", err)
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil || p.RunDir == "" {
		return s, nil // interrupted while it was written: nothing was removed yet
	}
	again := *s
	again.RunDir, again.KubeletDir = p.RunDir, p.KubeletDir
	return &again, nil
}

// checkNoReset refuses to start on what a reset left half removed.
func checkNoReset(dir string) error {
	if _, err := os.Stat(layout.Data(dir).ResetPlan()); err == nil {
		return fmt.Errorf("data directory %s is half removed: a reset was interrupted; run \"mote reset\" again", dir)
	}
	return nil
}
