package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// writeRun writes the machine, the commit and the program of a measurement.
func writeRun(w io.Writer, dir, commit string, took time.Duration) error {
	machine, err := describeMachine(dir)
	if err != nil {
		return err
	}
	writeTable(w, []string{"machine", ""}, append(machine,
		[]string{"commit", commit},
		[]string{"command", strings.TrimSpace("scripts/bench " + strings.Join(os.Args[1:], " "))},
		[]string{"date", fmt.Sprintf("%s, took %s", time.Now().UTC().Format("2006-01-02 15:04 MST"), took.Round(time.Second))},
	))
	return nil
}

// describeMachine lists the facts that a reader needs to compare figures.
func describeMachine(dir string) ([][]string, error) {
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	model := "unknown " + runtime.GOARCH
	for line := range strings.Lines(string(cpu)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	memory, err := readFields("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return [][]string{
		{"CPU", fmt.Sprintf("%s, %d cores", model, runtime.NumCPU())},
		{"memory", fmt.Sprintf("%.1f GiB", float64(memory["MemTotal"])/(1<<20))},
		{"kernel", fmt.Sprintf("%s %s", unix.ByteSliceToString(name.Sysname[:]), unix.ByteSliceToString(name.Release[:]))},
		{"file system", fileSystem(int64(disk.Type))},
	}, nil
}

func fileSystem(magic int64) string {
	switch magic {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs, not a disk: figures of writes and starts mean little"
	}
	return fmt.Sprintf("magic %#x", magic)
}
