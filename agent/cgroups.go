package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
)

// These are paths in every cgroup hierarchy, relative to its mount point.
const (
	cgroupRoot = "/mote"       // all groups of a node; the kubelet makes /mote/kubepods
	shimCgroup = "/mote/shims" // containerd's shims
	podCgroup  = "/mote/kubepods"
	// initCgroup takes the processes that are in the root of a delegated v2 tree. As long as
	// processes are in the root, the kernel refuses to give controllers to its children.
	initCgroup = "/mote-init"
)

// unifiedDir is the mount point of the v2 tree on a machine that uses cgroup v2.
const unifiedDir = "/sys/fs/cgroup"

// hierarchy is one mounted cgroup tree.
type hierarchy struct {
	dir         string
	controllers []string
	unified     bool // cgroup v2
}

// cgroupTrees finds the cgroup trees in a mountinfo file (proc(5)). It returns a tree that is
// mounted twice only once.
func cgroupTrees(file io.Reader) ([]hierarchy, error) {
	mounts, err := mountinfo.GetMountsFromReader(file, func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.FSType, "cgroup"), false
	})
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var trees []hierarchy
	seen := map[[2]int]bool{}
	for _, m := range mounts {
		device := [2]int{m.Major, m.Minor}
		if seen[device] {
			continue
		}
		seen[device] = true
		tree := hierarchy{dir: m.Mountpoint, unified: m.FSType == "cgroup2"}
		if !tree.unified {
			tree.controllers = strings.Split(m.VFSOptions, ",")[1:]
		}
		trees = append(trees, tree)
	}
	return trees, nil
}

func mountedCgroups() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	defer file.Close()
	trees, err := cgroupTrees(file)
	if err != nil {
		return nil, err
	}
	for i, tree := range trees {
		// Beside v1 trees, v2 is mounted elsewhere, and runc does not use its controllers.
		if !tree.unified || tree.dir != unifiedDir {
			continue
		}
		controllers, err := os.ReadFile(filepath.Join(tree.dir, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("read cgroup controllers: %w", err)
		}
		trees[i].controllers = strings.Fields(string(controllers))
	}
	return trees, nil
}

// neededControllers returns the controllers without which the kubelet or runc fails.
// usefulControllers returns those that mote hands down where they exist. (Some controllers of v1
// are built into v2. runc detects these itself.)
func neededControllers() []string { return []string{"cpu", "cpuset", "memory", "pids"} }
func usefulControllers() []string { return []string{"io", "hugetlb"} }

// missingControllers returns the needed controllers that no tree has.
func missingControllers(trees []hierarchy) []string {
	var missing []string
	for _, needed := range neededControllers() {
		if !slices.ContainsFunc(trees, func(h hierarchy) bool { return slices.Contains(h.controllers, needed) }) {
			missing = append(missing, needed)
		}
	}
	return missing
}

// prepareCgroups makes mote's groups in every tree and hands every controller down to them.
func prepareCgroups() error {
	trees, err := mountedCgroups()
	if err != nil {
		return err
	}
	if missing := missingControllers(trees); len(missing) > 0 {
		return fmt.Errorf("cgroup controllers missing: %s; mount cgroups on /sys/fs/cgroup and enable them (kernel parameters, delegation)",
			strings.Join(missing, ", "))
	}
	for _, tree := range trees {
		if err := tree.prepare(); err != nil {
			return err
		}
	}
	return nil
}

func (h hierarchy) prepare() error {
	if len(h.controllers) == 0 {
		return nil // the empty v2 tree beside v1 ones
	}
	if h.unified {
		if err := h.evacuate(); err != nil {
			return err
		}
	}
	for _, group := range []string{"/", cgroupRoot, shimCgroup} {
		dir := filepath.Join(h.dir, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
		switch {
		case h.unified && group != shimCgroup:
			if err := handDown(dir, h.controllers); err != nil {
				return err
			}
		case !h.unified && group != "/" && slices.Contains(h.controllers, "cpuset"):
			if err := inheritCpuset(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// evacuate moves all processes out of the root of a delegated v2 tree, because a group with
// processes may not hand controllers to its children. The real root may, and it is the only group
// without a cgroup.type.
func (h hierarchy) evacuate() error {
	if _, err := os.Stat(filepath.Join(h.dir, "cgroup.type")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	pids, err := groupPIDs(h.dir)
	if err != nil || len(pids) == 0 {
		return err
	}
	dir := filepath.Join(h.dir, initCgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	for _, pid := range pids {
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("move process %d to cgroup %s: %w", pid, dir, err)
		}
	}
	return nil
}

// handDown enables controllers for the children of a v2 group. It writes them one at a time: the
// kernel refuses a whole write if it refuses one of its controllers.
func handDown(dir string, available []string) error {
	for _, controller := range append(neededControllers(), usefulControllers()...) {
		if !slices.Contains(available, controller) {
			continue
		}
		err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
		if err != nil && slices.Contains(neededControllers(), controller) {
			return fmt.Errorf("enable cgroup controller %s below %s: %w", controller, dir, err)
		}
	}
	return nil
}

// inheritCpuset gives a v1 cpuset group the CPUs and memory nodes of its parent. A new group has
// none, and no process can enter a group without them.
func inheritCpuset(dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return fmt.Errorf("read cpuset: %w", err)
		}
		if len(bytes.TrimSpace(own)) > 0 {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
		if err != nil {
			return fmt.Errorf("read cpuset: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), parent, 0o644); err != nil {
			return fmt.Errorf("set cpuset: %w", err)
		}
	}
	return nil
}

// groupPIDs lists the processes directly in the group at dir, or none if the group does not exist.
func groupPIDs(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of a cgroup: %w", err)
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", dir, err)
		}
		if pid > 0 { // 0 is a process of another PID namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// processesIn lists the processes in group and in the groups below it, in all trees.
func processesIn(trees []hierarchy, group string) ([]int, error) {
	found := map[int]bool{}
	for _, tree := range trees {
		err := filepath.WalkDir(filepath.Join(tree.dir, group), func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !entry.IsDir() {
				return err
			}
			pids, err := groupPIDs(path)
			for _, pid := range pids {
				found[pid] = true
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list processes below cgroup %s: %w", group, err)
		}
	}
	pids := make([]int, 0, len(found))
	for pid := range found {
		pids = append(pids, pid)
	}
	return pids, nil
}

// removeCgroups removes mote's groups in every tree, from the leaves up.
func removeCgroups() error {
	trees, err := mountedCgroups()
	if err != nil {
		return err
	}
	var errs []error
	for _, tree := range trees {
		errs = append(errs, removeGroup(filepath.Join(tree.dir, cgroupRoot)))
		// This group keeps its processes, mote among them, and so usually stays.
		_ = os.Remove(filepath.Join(tree.dir, initCgroup))
	}
	return errors.Join(errs...)
}

func removeGroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeGroup(filepath.Join(dir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cgroup: %w", err)
	}
	return nil
}
