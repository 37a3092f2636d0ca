package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"
)

// restTime is the time over which the servers are watched while they get no requests.
const restTime = 10 * time.Second

// restResult is the activity of a server, with a watch open, while it gets no requests.
type restResult struct {
	engine string
	// wakeUps is per second, of all threads; cpu is for the whole time.
	wakeUps float64
	cpu     time.Duration
	written int64
}

// watchRest measures all servers at the same time.
func (b *storeBench) watchRest(ctx context.Context, beds []*bed) error {
	type reading struct {
		process
		wakeUps int64
	}
	read := func() (all []reading, err error) {
		for _, one := range beds {
			p, err := one.look()
			if err != nil {
				return nil, err
			}
			n, err := wakeUps(one.cmd.Process.Pid)
			if err != nil {
				return nil, err
			}
			all = append(all, reading{p, n})
		}
		return all, nil
	}
	if err := pause(ctx, calm); err != nil {
		return err
	}
	before, err := read()
	if err != nil {
		return err
	}
	if err := pause(ctx, restTime); err != nil {
		return err
	}
	after, err := read()
	if err != nil {
		return err
	}
	for i, one := range beds {
		b.rest = append(b.rest, restResult{
			engine: one.engine.name, wakeUps: float64(after[i].wakeUps-before[i].wakeUps) / restTime.Seconds(),
			cpu: after[i].CPU - before[i].CPU, written: after[i].Written - before[i].Written,
		})
	}
	return nil
}

// wakeUps counts how often the threads of a process have waited for something.
func wakeUps(pid int) (int64, error) {
	threads, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task/*/status"))
	if err != nil {
		return 0, err
	}
	sum := int64(0)
	for _, thread := range threads {
		fields, err := readFields(thread)
		if errors.Is(err, fs.ErrNotExist) {
			continue // ended meanwhile
		}
		if err != nil {
			return 0, err
		}
		sum += fields["voluntary_ctxt_switches"]
	}
	return sum, nil
}

func (b *storeBench) writeRest(w io.Writer) {
	fmt.Fprintf(w, "### At rest\n\nA watch is open and nobody asks anything, for %s.\n\n", restTime)
	var cells [][]string
	for _, r := range b.rest {
		cells = append(cells, []string{r.engine, fmt.Sprintf("%.1f", r.wakeUps), fmt.Sprint(r.cpu.Milliseconds()), fmt.Sprintf("%.1f", float64(r.written)/1000)})
	}
	writeTable(w, []string{"engine", "wake-ups a second", "processor time, ms", "written, kB"}, cells)
}
