package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted tree of cgroups. cgroup v1 has several, v2 has one, and a hybrid has
// both kinds.
type hierarchy struct {
	mount string // the mount point
	v2    bool
	// options are the mount options of a v1 hierarchy: "cpu,cpuacct" or "none,name=systemd".
	options string
}

// hierarchies returns each of the host's hierarchies once.
func hierarchies() ([]hierarchy, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	controllers, err := v1Controllers()
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	seen := make(map[string]bool)
	for _, m := range mounts {
		h := hierarchy{mount: m.Mountpoint, v2: m.FSType == "cgroup2"}
		switch m.FSType {
		case "cgroup":
			h.options = v1Options(m.VFSOptions, controllers)
		case "cgroup2":
		default:
			continue
		}
		if !seen[h.options] {
			seen[h.options] = true
			found = append(found, h)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted; mount one on /sys/fs/cgroup")
	}
	return found, nil
}

// v1Controllers returns the names of the kernel's controllers (cgroups(7), /proc/cgroups).
func v1Controllers() (map[string]bool, error) {
	data, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		return nil, fmt.Errorf("list cgroup controllers: %w", err)
	}
	names := make(map[string]bool)
	for line := range strings.Lines(string(data)) {
		if name, _, ok := strings.Cut(line, "\t"); ok && !strings.HasPrefix(name, "#") {
			names[name] = true
		}
	}
	return names, nil
}

// v1Options returns the options of a super block that identify its hierarchy.
func v1Options(super string, controllers map[string]bool) string {
	var options []string
	for o := range strings.SplitSeq(super, ",") {
		if strings.HasPrefix(o, "name=") {
			options = append(options, "none", o)
		} else if controllers[o] {
			options = append(options, o)
		}
	}
	return strings.Join(options, ",")
}

// v2Controllers are the controllers that the kubelet needs, if the kernel has them.
var v2Controllers = [...]string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"}

// makeCgroups makes a group called name at the top of every hierarchy and returns the groups'
// paths.
func makeCgroups(name string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var made []string
	for _, h := range hs {
		if h.v2 && len(hs) == 1 {
			// This is not undone at the end: other programs may need it by now, and it changes no
			// group.
			if err := shareControllers(h.mount); err != nil {
				return nil, err
			}
		}
		path := filepath.Join(h.mount, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return nil, fmt.Errorf("make a cgroup: %w", err)
		}
		if err := inheritCPUSet(path); err != nil {
			return nil, err
		}
		if err := setWeight(path, runtime.NumCPU()); err != nil {
			return nil, err
		}
		made = append(made, path)
	}
	return made, nil
}

// leaf is the group to which processes in the top group move. The server uses a group of the same
// name for the same purpose.
const leaf = "mote-init"

// shareControllers gives top's controllers to the groups below top, in a v2 hierarchy. The top of a
// container may have processes of its own, and a group with processes may not share its controllers
// (cgroups(7), "no internal processes"). So these processes move one level down.
func shareControllers(top string) error {
	err := enableControllers(top)
	for tries := 0; errors.Is(err, unix.EBUSY) && tries < 10; tries++ { // more processes may be forked meanwhile
		if err := os.Mkdir(filepath.Join(top, leaf), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a cgroup: %w", err)
		}
		for _, pid := range members(top) {
			_ = joinCgroups([]string{filepath.Join(top, leaf)}, pid) // a process that has ended need not move
		}
		err = enableControllers(top)
	}
	return err
}

func enableControllers(top string) error {
	data, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("list cgroup controllers: %w", err)
	}
	available := strings.Fields(string(data))
	var enable []string
	for _, c := range v2Controllers {
		if slices.Contains(available, c) {
			enable = append(enable, "+"+c)
		}
	}
	// One write enables all of them. The kernel would accept cpu alone beside processes, and the
	// group could then take no memory controller any more.
	if err := os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte(strings.Join(enable, " ")), 0); err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	return nil
}

// inheritCPUSet gives a new v1 cpuset group the processors and memory nodes of its parent. A new
// group has none, and takes no process before it has some.
func inheritCPUSet(path string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if _, err := os.Stat(filepath.Join(path, "cgroup.controllers")); err == nil {
			return nil // v2 groups inherit
		}
		data, err := os.ReadFile(filepath.Join(filepath.Dir(path), file))
		if errors.Is(err, fs.ErrNotExist) {
			continue // this hierarchy has no such file
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(path, file), data, 0)
		}
		if err != nil {
			return fmt.Errorf("prepare a cgroup: %w", err)
		}
	}
	return nil
}

// sharesOfProcess is the weight of one runnable thread beside a v1 group (sched-design-CFS: the
// weight of nice 0).
const sharesOfProcess = 1024

// setWeight gives the group at path, in the v1 hierarchy of cpu, the weight of its content: the
// server's threads, as many as there are processors, and the pods, to which the kubelet gives the
// same weight. With the kernel's default, the whole cluster would have the weight of one thread in
// the host's root group. On v2 the default stays: the siblings are groups too, and a sandbox has
// the same weight as each of them.
func setWeight(path string, processors int) error {
	file, err := os.OpenFile(filepath.Join(path, "cpu.shares"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the hierarchy of other controllers
	}
	if err == nil {
		_, err = file.WriteString(strconv.Itoa(2 * processors * sharesOfProcess))
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return fmt.Errorf("set a cgroup's weight: %w", err)
	}
	return nil
}

// joinCgroups moves process pid into groups.
func joinCgroups(groups []string, pid int) error {
	for _, g := range groups {
		if err := os.WriteFile(filepath.Join(g, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("enter a cgroup: %w", err)
		}
	}
	return nil
}

// removeCgroups kills all processes in the groups called name and the groups below, and removes the
// groups.
func removeCgroups(ctx context.Context, name string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		// This kills in every hierarchy first. A process that is frozen in one of them cannot die,
		// and keeps its groups in all of them busy.
		killCgroup(filepath.Join(h.mount, name))
	}
	for _, h := range hs {
		if err := removeCgroup(ctx, filepath.Join(h.mount, name)); err != nil {
			return err
		}
	}
	return nil
}

func removeCgroup(ctx context.Context, path string) error {
	for {
		killCgroup(path)
		err := tryRemoveCgroup(path)
		if err == nil {
			return nil
		}
		// A group is busy if its processes are still dying, or if another process has made a group
		// in it after its content was listed.
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove a cgroup: %w", err)
		}
		if pause(ctx) != nil {
			return fmt.Errorf("remove a cgroup: %w: processes %v do not end", err, members(path))
		}
	}
}

// killCgroup kills all processes in the group at path and the groups below.
func killCgroup(path string) {
	_ = filepath.WalkDir(path, func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // removed meanwhile, or a file
		}
		for _, pid := range members(dir) {
			_ = unix.Kill(pid, unix.SIGKILL) // the process may have ended already
		}
		// On v1 a frozen process does not die until it is thawed. v2 has no such file.
		if state, err := os.OpenFile(filepath.Join(dir, "freezer.state"), os.O_WRONLY, 0); err == nil {
			_, _ = state.WriteString("THAWED")
			state.Close()
		}
		return nil
	})
}

// tryRemoveCgroup removes the group at path and the groups below, deepest first.
func tryRemoveCgroup(path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := tryRemoveCgroup(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	err = unix.Rmdir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "rmdir", Path: path, Err: err}
	}
	return nil
}

// members lists the processes directly in the group at path.
func members(path string) []int {
	data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		// 0 is a process of another PID namespace. kill would take 0 as the group of the calling
		// process.
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}
