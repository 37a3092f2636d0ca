package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mote-k8s/mote/cmd/mote/settings"
)

// newUninstallCommand returns the verb that takes back what install did.
func newUninstallCommand(e *env) *cobra.Command {
	var root string
	var withData, yes bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take back what install did",
		Long: `Stop the service and remove the files that "mote install" wrote. The cluster's data stay, unless --reset is given,
and containers go on until then.`,
		GroupID: groupManage,
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&root, "root", "/", "uninstall from the machine whose root `directory` this is")
	cmd.Flags().BoolVar(&withData, "reset", false, "remove the cluster with its data too, as \"mote reset\" does")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before --reset")
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := load()
		if err != nil {
			return err
		}
		if err := requireRoot("uninstall"); err != nil {
			return err
		}
		i := installer{root: filepath.Clean(root), steps: newSteps(e)}
		if i.root == "/" && withData {
			if err := reset(cmd.Context(), e, s, yes, true); err != nil {
				return err
			}
		} else if i.root == "/" {
			if err := stopService(cmd.Context(), e, s); err != nil {
				return err
			}
		}
		return i.uninstall(cmd.Context(), e)
	}
	return cmd
}

// stopService stops a mote that runs as the service. One that somebody started is left alone.
func stopService(ctx context.Context, e *env, s *settings.Settings) error {
	pid, err := holderOf(s.DataDir)
	if err != nil || pid == 0 {
		return nil // who cannot look at the data directory may take the service away all the same
	}
	if runsAsService(pid) {
		return stop(ctx, e, s, false)
	}
	fmt.Fprintf(e.stderr, "mote (pid %d) does not run as a service and goes on; \"mote stop\" stops it\n", pid)
	return nil
}

// runsAsService tells whether a service manager started process pid: systemd puts it into a group of the service's name.
func runsAsService(pid int) bool {
	if supervised() {
		return true
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(groups), "/"+serviceName+".service")
}

// uninstall removes what the record lists, and the record last.
func (i installer) uninstall(ctx context.Context, e *env) error {
	paths, err := i.recorded()
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		fmt.Fprintf(e.stderr, "Nothing to remove: there is no %s\n", i.path(installRecord))
		return nil
	}
	slices.Reverse(paths)
	for _, p := range paths {
		if err := i.steps.do("Remove "+i.path(p), func() error { return i.remove(p) }); err != nil {
			return err
		}
	}
	if err := i.remove(installRecord); err != nil {
		return err
	}
	// Ours alone, and empty now.
	if err := os.Remove(filepath.Dir(i.path(installRecord))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("uninstall: %w", err)
	}
	for _, s := range initSystems() {
		if i.root == "/" && exists(s.live) && s.reload != nil {
			return command(ctx, s.reload)
		}
	}
	return nil
}

// remove leaves a kubectl alone that took our link's place.
func (i installer) remove(path string) error {
	if path == kubectlLink {
		if target, err := os.Readlink(i.path(path)); err != nil || target != installedFile {
			return nil
		}
	}
	if err := os.Remove(i.path(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("uninstall: %w", err)
	}
	return nil
}
