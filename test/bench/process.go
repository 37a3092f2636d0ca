package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is the resource usage of one process of a cluster. Times and bytes are totals since it
// started and include its children that have ended. Memory is the current usage in bytes.
type process struct {
	PID       int
	Name      string
	CPU       time.Duration
	Written   int64
	PSS, Anon int64
	File      int64
	RSS       int64
	// Wakeups are voluntary context switches of the threads that exist.
	Wakeups int64
}

// clockTick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every Linux architecture.
const clockTick = 10 * time.Millisecond

// clusterProcesses reads every process of this PID namespace, except the bench's own and the user's
// containers: all others belong to the distribution.
func clusterProcesses() ([]process, error) {
	folders, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all []process
	for _, folder := range folders {
		p, err := readProcess(folder)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", folder, err)
		}
		if p.PSS == 0 || p.PID == 1 || p.PID == os.Getpid() || p.Name == appName {
			continue // a zombie or kernel thread, the bench itself, or a user's container
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b process) int { return int(b.PSS - a.PSS) })
	return all, nil
}

func readProcess(folder string) (process, error) {
	var p process
	pid, err := strconv.Atoi(filepath.Base(folder))
	if err != nil {
		return p, err
	}
	p.PID = pid
	stat, err := os.ReadFile(filepath.Join(folder, "stat"))
	if err != nil {
		return p, err
	}
	// The name is in parentheses and may contain any character; the fields after it are counted
	// from 3.
	open, end := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	p.Name = string(stat[open+1 : end])
	fields := strings.Fields(string(stat[end+1:]))
	for _, value := range fields[11:15] { // utime, stime, cutime, cstime: 14 to 17 of proc_pid_stat(5)
		ticks, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return p, err
		}
		p.CPU += time.Duration(ticks) * clockTick
	}
	io, err := readFields(filepath.Join(folder, "io"))
	if err != nil {
		return p, err
	}
	p.Written = io["write_bytes"] - io["cancelled_write_bytes"]
	memory, err := readFields(filepath.Join(folder, "smaps_rollup"))
	if err != nil {
		return p, err
	}
	if p.Wakeups, err = wakeUps(p.PID); err != nil {
		return p, err
	}
	p.PSS, p.Anon, p.File, p.RSS = memory["Pss"]<<10, memory["Pss_Anon"]<<10, memory["Pss_File"]<<10, memory["Rss"]<<10
	return p, nil
}

// readFields reads a file of lines "Name: NUMBER [unit]".
func readFields(path string) (map[string]int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(line, ":")
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
				values[name] = n
			}
		}
	}
	return values, nil
}

// usage is the resource usage of a cluster between two readings.
type usage struct {
	Over time.Duration
	// CPU is the CPU time of all processes, by process name.
	CPU map[string]time.Duration
	// Written is the number of bytes that the processes wrote to file systems. Sectors is the
	// number of bytes that reached the block device, journal included; 0 when the disk is shared.
	Written, Sectors int64
	// Wakeups are voluntary context switches.
	Wakeups int64
	// Files has the number of bytes of each file that went to the disk. A page in a large folio of
	// the page cache counts as the whole folio.
	Files map[string]int64
}

// look is one reading of all counters.
type look struct {
	at        time.Time
	processes []process
	sectors   int64
}

func takeLook(disk string, ownDisk bool) (look, error) {
	l := look{at: time.Now()}
	var err error
	if ownDisk {
		if l.sectors, err = bytesOnDevice(disk); err != nil {
			return l, err
		}
	}
	l.processes, err = clusterProcesses()
	return l, err
}

// since returns the usage between l0 and l. A process that is new counts in full.
func (l look) since(l0 look) usage {
	u := usage{Over: l.at.Sub(l0.at), CPU: map[string]time.Duration{}, Sectors: l.sectors - l0.sectors}
	before := map[int]process{}
	for _, p := range l0.processes {
		before[p.PID] = p
	}
	for _, p := range l.processes {
		old := before[p.PID]
		u.CPU[p.Name] += p.CPU - old.CPU
		u.Written += p.Written - old.Written
		u.Wakeups += p.Wakeups - old.Wakeups
	}
	return u
}

// bytesOnDevice returns how many bytes were written to the block device that holds path.
func bytesOnDevice(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", path, err)
	}
	file := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev))
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	const sectorsWritten, sectorSize = 6, 512 // Documentation/block/stat.rst
	fields := strings.Fields(string(text))
	sectors, err := strconv.ParseInt(fields[sectorsWritten], 10, 64)
	return sectors * sectorSize, err
}
