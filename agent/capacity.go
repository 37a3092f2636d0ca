package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

const (
	mib = 1 << 20
	// podTasks is the default limit of processes and threads of one pod. A database or a JVM has
	// fewer. A fork bomb that reaches it fills an eighth of the 32,768 that a machine of up to 32
	// CPUs has by default.
	podTasks = 4096
)

// capacity holds the resources that the machine, or the container around mote, offers to everything
// that runs on it.
type capacity struct {
	cpus int
	// memory is the machine's memory in bytes, as the kubelet sees it. usable is less where a
	// cgroup limits mote and its pods together.
	memory, usable uint64
	// tasks is the machine's limit of processes and threads, as the kubelet sees it. usableTasks is
	// less where a cgroup limits it.
	tasks, usableTasks uint64
}

func detectCapacity() (capacity, error) {
	c := capacity{cpus: runtime.NumCPU()}
	var err error
	if c.memory, err = totalMemory("/proc/meminfo"); err != nil {
		return c, err
	}
	if c.tasks, err = maxTasks("/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"); err != nil {
		return c, err
	}
	trees, err := mountedCgroups()
	if err != nil {
		return c, err
	}
	c.usable, c.usableTasks = c.memory, c.tasks
	for _, tree := range trees {
		memory, tasks, err := tree.limits()
		if err != nil {
			return c, err
		}
		c.usable, c.usableTasks = min(c.usable, memory), min(c.usableTasks, tasks)
	}
	return c, nil
}

// UsableMemory returns the memory, in bytes, that the machine, or the container around mote, offers
// to mote and its pods together.
func UsableMemory() (uint64, error) {
	c, err := detectCapacity()
	return c.usable, err
}

// systemReserved returns the resources that the pods together never get: the share of mote and of
// the rest of the system. Without it, pods without limits can take memory until the kernel kills
// something on the machine. With it, the pods' own cgroup is full first, and the kernel kills one
// of them. The kubelet counts from the resources of the whole machine, so the amount that a cgroup
// around mote withholds is reserved too.
func (c capacity) systemReserved() map[string]string {
	return map[string]string{
		"cpu":    fmt.Sprintf("%dm", reservedCPU(c.cpus)),
		"memory": strconv.FormatUint(c.memory-c.usable+reservedMemory(c.usable), 10),
		"pid":    strconv.FormatUint(c.tasks-c.usableTasks+min(c.usableTasks/4, podTasks), 10),
	}
}

// podTasksLimit returns the default limit of processes and threads of one pod: podTasks, or a
// quarter of the machine's limit where that is less.
func (c capacity) podTasksLimit() int64 { return int64(min(podTasks, c.usableTasks/4)) }

// reservedMemory returns a quarter of the first GiB, an eighth of the next three, a twentieth of
// the next twelve, and a fiftieth of the rest: 128 MiB of 512 MiB, 640 MiB of 4 GiB, 1,254 MiB of
// 16 GiB. mote needs some 300 MiB at idle, and more with more objects. A small machine reserves
// less than that, so that it has room for pods.
func reservedMemory(usable uint64) uint64 {
	var reserved uint64
	for _, step := range []struct{ upTo, part uint64 }{
		{1024 * mib, 4}, {3 * 1024 * mib, 8}, {12 * 1024 * mib, 20}, {math.MaxUint64, 50},
	} {
		piece := min(usable, step.upTo)
		reserved += piece / step.part
		usable -= piece
	}
	return reserved / mib * mib
}

// reservedCPU returns thousandths of a CPU. The reservation gives weight to everything except pods.
// It limits nothing: pods use idle CPU time.
func reservedCPU(cpus int) int { return 100 + 20*(cpus-1) }

// limits returns the limits of the topmost visible group of the tree, which is the group of the
// container around mote, if there is one.
func (h hierarchy) limits() (memory, tasks uint64, err error) {
	memory, tasks = math.MaxUint64, math.MaxUint64
	if slices.Contains(h.controllers, "memory") {
		if h.unified {
			memory, err = cgroupLimit(filepath.Join(h.dir, "memory.max"))
		} else {
			memory, err = cgroupLimit(filepath.Join(h.dir, "memory.limit_in_bytes"))
		}
		if err != nil {
			return 0, 0, err
		}
	}
	if slices.Contains(h.controllers, "pids") {
		if tasks, err = cgroupLimit(filepath.Join(h.dir, "pids.max")); err != nil {
			return 0, 0, err
		}
	}
	return memory, tasks, nil
}

// cgroupLimit reads one limit. The machine's own root group has no such file, and so no limit.
func cgroupLimit(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	text := strings.TrimSpace(string(data))
	if errors.Is(err, fs.ErrNotExist) || err == nil && text == "max" {
		return math.MaxUint64, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read cgroup limit: %w", err)
	}
	limit, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read cgroup limit %s: %w", path, err)
	}
	return limit, nil
}

// totalMemory reads MemTotal of /proc/meminfo (proc(5)), where the kubelet reads it too.
func totalMemory(path string) (uint64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == "MemTotal:" {
			kib, err := strconv.ParseUint(fields[1], 10, 54)
			if err != nil {
				return 0, fmt.Errorf("read the machine's memory: %s: %w", path, err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("read the machine's memory: %s has no MemTotal", path)
}

// maxTasks returns the lowest of the kernel's limits, as upstream's pkg/kubelet/stats/pidlimit
// does.
func maxTasks(paths ...string) (uint64, error) {
	lowest := uint64(math.MaxUint64)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, fmt.Errorf("read the kernel's limit of processes: %w", err)
		}
		limit, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the kernel's limit of processes: %s: %w", path, err)
		}
		lowest = min(lowest, limit)
	}
	return lowest, nil
}
