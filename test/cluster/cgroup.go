package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// groupTimeout is the time in which the kernel must release a group whose processes were killed.
const groupTimeout = 20 * time.Second

// makeGroups makes a group for a new host at the root of each hierarchy and returns their
// directories.
func makeGroups() ([]string, error) {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return nil, err
	}
	var groups []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[2] != "cgroup" && f[2] != "cgroup2" {
			continue
		}
		group, err := os.MkdirTemp(f[1], "mote-test-")
		if err != nil {
			return groups, errors.Join(err, removeGroups(groups))
		}
		groups = append(groups, group)
		// A new group of the cpuset controller of cgroup v1 is empty, and accepts no process until
		// it is filled.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(f[1], file))
			if err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(group, file), value, 0); err != nil {
				return groups, errors.Join(err, removeGroups(groups))
			}
		}
	}
	return groups, nil
}

// removeGroups removes the groups and all groups below them. Their processes are dead or dying.
func removeGroups(groups []string) error {
	// The test's context has ended when its cleanup runs. Only rmdir shows whether a dying process
	// has left its group.
	return poll(context.Background(), groupTimeout, func() error {
		var errs []error
		for _, g := range groups {
			errs = append(errs, removeTree(g))
		}
		return errors.Join(errs...)
	})
}

func removeTree(group string) error {
	var dirs []string
	err := filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list cgroup %s: %w", group, err)
	}
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
