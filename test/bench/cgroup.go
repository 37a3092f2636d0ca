package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup tree of the host: several with cgroup v1, one with v2.
type hierarchy struct {
	// Mount is its mount point, at or below /sys/fs/cgroup.
	Mount string
	// Type is "cgroup" or "cgroup2". Options are the mount options that select the same tree.
	Type, Options string
	// Group is the directory of this process's own group in it.
	Group string
}

// hierarchies lists the cgroup trees of the calling process.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for line := range strings.Lines(string(mounts)) {
		left, right, _ := strings.Cut(line, " - ")
		// Fields of proc_pid_mountinfo(5): 3 root, 4 mount point; right: type, source, super
		// options.
		l, r := strings.Fields(left), strings.Fields(right)
		if len(l) < 5 || len(r) < 3 || (r[0] != "cgroup" && r[0] != "cgroup2") {
			continue
		}
		h := hierarchy{Mount: l[4], Type: r[0], Options: controllerOptions(r[2])}
		own, ok := ownGroup(string(groups), h)
		if !ok {
			continue
		}
		below, err := filepath.Rel(l[3], own)
		if err != nil {
			return nil, fmt.Errorf("find own group in %s: %w", h.Mount, err)
		}
		h.Group = filepath.Join(h.Mount, below)
		found = append(found, h)
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup tree is mounted; mount cgroup2 on /sys/fs/cgroup")
	}
	return found, nil
}

// controllerOptions returns the super options that select a v1 tree: its controllers or its name.
func controllerOptions(super string) string {
	var keep []string
	for option := range strings.SplitSeq(super, ",") {
		if name, ok := strings.CutPrefix(option, "name="); ok {
			return "none,name=" + name
		}
		if option != "rw" && option != "ro" && !strings.Contains(option, "=") && !strings.HasPrefix(option, "ns") {
			keep = append(keep, option)
		}
	}
	return strings.Join(keep, ",")
}

// ownGroup finds the line of h in the text of /proc/self/cgroup: "ID:CONTROLLERS:PATH".
func ownGroup(text string, h hierarchy) (string, bool) {
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if h.Type == "cgroup2" && parts[0] == "0" && parts[1] == "" {
			return parts[2], true
		}
		if h.Type == "cgroup" && sameControllers(parts[1], strings.TrimPrefix(h.Options, "none,")) {
			return parts[2], true
		}
	}
	return "", false
}

func sameControllers(a, b string) bool {
	x, y := strings.Split(a, ","), strings.Split(b, ",")
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// joinGroups moves this process into a new group of that name, below its own, in every tree.
func joinGroups(trees []hierarchy, name string) error {
	for _, h := range trees {
		group := filepath.Join(h.Group, name)
		if err := os.Mkdir(group, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		if err := inheritCpuset(h.Group, group); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// inheritCpuset fills a v1 cpuset group: a new one is empty and accepts no process until it is
// filled.
func inheritCpuset(parent, group string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read cpuset: %w", err)
		}
		if strings.TrimSpace(string(value)) == "" {
			return nil
		}
		if err := os.WriteFile(filepath.Join(group, file), value, 0); err != nil {
			return fmt.Errorf("fill cpuset: %w", err)
		}
	}
	return nil
}

// removeGroups removes the groups that joinGroups made, and the groups below them. All their
// processes are gone by then.
func removeGroups(trees []hierarchy, name string) error {
	var problems []error
	for _, h := range trees {
		var folders []string
		err := filepath.WalkDir(filepath.Join(h.Group, name), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				folders = append(folders, path)
			}
			return err
		})
		problems = append(problems, err)
		for _, folder := range slices.Backward(folders) {
			if err := unix.Rmdir(folder); err != nil {
				problems = append(problems, fmt.Errorf("remove cgroup %s: %w", folder, err))
			}
		}
	}
	return errors.Join(problems...)
}

// mountGroups mounts the same trees again. In a cgroup namespace the new mounts show the own group
// as root.
func mountGroups(trees []hierarchy) error {
	if trees[0].Mount != "/sys/fs/cgroup" {
		if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
		}
	}
	for _, h := range trees {
		if err := os.MkdirAll(h.Mount, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(h.Type, h.Mount, h.Type, 0, h.Options); err != nil {
			return fmt.Errorf("mount %s with %q: %w", h.Mount, h.Options, err)
		}
		if h.Type == "cgroup2" {
			if err := delegate(h.Mount); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate makes a v2 tree usable below its root. A group that delegates controllers may contain no
// process (the kernel's "no internal processes" rule), so this process moves to a group below
// first.
func delegate(root string) error {
	controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil || len(strings.Fields(string(controllers))) == 0 {
		return err
	}
	leaf := filepath.Join(root, "init")
	if err := os.Mkdir(leaf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(leaf, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("join %s: %w", leaf, err)
	}
	enable := "+" + strings.Join(strings.Fields(string(controllers)), " +")
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte(enable), 0); err != nil {
		return fmt.Errorf("hand out cgroup controllers: %w", err)
	}
	return nil
}
