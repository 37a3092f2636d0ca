package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// nodeName is the host name in a trial's namespaces, and so the node's name.
	nodeName = "bench"
	// diskSize is the size of a trial's own file system, 8 GiB in a sparse file: large enough that
	// the kubelet, which checks the free share, never reports a lack of disk space.
	diskSize = 8 << 30
	// stepTimeout ends a step that will never succeed. The slowest one takes some 10 s here.
	stepTimeout = 2 * time.Minute
)

// trial describes the measurements of one fresh cluster. The trial's process receives it as JSON.
type trial struct {
	// Flavour is "mote" or "stock".
	Flavour string
	// Dir is a fresh directory on the measured disk; everything that the trial writes is below it.
	Dir string
	// Mote is the mote file, Stock the directory of the stock programs. Payload is the directory of
	// runc, shim and CNI plugins that the stock components use. Images is the archive with the
	// pods' image.
	Mote, Stock, Payload, Images string
	// MoteArgs are further arguments of mote server.
	MoteArgs []string
	// FirstPod creates a pod as soon as the API accepts one and measures its time from the start.
	FirstPod bool
	// Pods is the number of pods that are created and timed, one after another.
	Pods int
	// Warm stops the cluster and starts it again on the same data.
	Warm bool
	// Settle is the time that the cluster is left idle before Idle, the time over which usage is
	// measured. IdlePods pods are then started and memory is read again. 0 leaves a step out.
	Settle, Idle time.Duration
	IdlePods     int
	// Addon is the part of `scripts/bench addons` that is measured inside, for Rounds rounds.
	Addon  string
	Rounds int
	// OwnDisk gives the trial a file system of its own, so that its device writes can be
	// distinguished.
	OwnDisk bool
}

// result has the measurements of a trial; a field that was not requested is zero.
type result struct {
	// From the exec of the first process.
	APIReady, NodeReady, FirstPod time.Duration
	// StartCPU is the CPU time of all processes until the node was Ready and the first pod ran.
	StartCPU time.Duration
	// From SIGTERM to the end of the last process; containers continue to run.
	Stop time.Duration
	// From the exec of the first process, on the data of the previous run.
	WarmAPI, WarmNode time.Duration
	// From the create call to the watch event that shows the pod Running.
	Pods []time.Duration
	// At the end of the idle time, and with IdlePods pods after another Settle.
	Idle         usage
	Memory       []process
	MemoryOfPods []process
	// Addon has the measurements of an addon's part, by figure.
	Addon map[string]sample
}

func (t trial) path(name string) string { return filepath.Join(t.Dir, name) }

// group returns the name of the trial's cgroup.
func (t trial) group() string { return "mote-bench-" + filepath.Base(t.Dir) }

func readTrial(path string) (trial, error) {
	var t trial
	data, err := os.ReadFile(path)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return t, fmt.Errorf("read %s: %w", path, err)
	}
	return t, nil
}

func writeJSON(path string, value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// cluster is one way to run Kubernetes.
type cluster interface {
	// prepare writes the files that exist before the clock starts.
	prepare() error
	// start executes the first process and returns. It may start further ones in the background.
	start(ctx context.Context, p *programs) error
	// kubeconfig returns the path of the admin kubeconfig, which exists when the API is ready.
	kubeconfig() string
}

func newCluster(t trial) cluster {
	if t.Flavour == "mote" {
		return &mote{trial: t}
	}
	return &stock{trial: t}
}

// runTrial runs t inside its namespaces and writes its measurements to result.json.
func runTrial(ctx context.Context, specPath string) error {
	t, err := readTrial(specPath)
	if err != nil {
		return err
	}
	var r result
	if err := t.measure(ctx, newCluster(t), &r); err != nil {
		return errors.Join(err, printLogs(t.path("logs")))
	}
	return writeJSON(t.path("result.json"), r)
}

func (t trial) measure(ctx context.Context, c cluster, r *result) error {
	if err := os.MkdirAll(t.path("logs"), 0o755); err != nil {
		return err
	}
	if err := c.prepare(); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	ctx, p := newPrograms(ctx, t.path("logs"))
	if err := t.coldStart(ctx, c, p, r); err != nil {
		return fmt.Errorf("cold start: %w", err)
	}
	if err := t.timePods(ctx, c, r); err != nil {
		return fmt.Errorf("time pods: %w", err)
	}
	if t.Addon != "" {
		if err := t.measureAddon(ctx, c, p, r); err != nil {
			return fmt.Errorf("measure %s: %w", t.Addon, err)
		}
	}
	if t.Idle > 0 {
		if err := t.watchIdle(ctx, c, r); err != nil {
			return fmt.Errorf("idle: %w", err)
		}
	}
	if t.Warm {
		began := time.Now()
		p.stop()
		r.Stop = time.Since(began)
		ctx, p = newPrograms(ctx, t.path("logs"))
		if err := t.warmStart(ctx, c, p, r); err != nil {
			return fmt.Errorf("warm start: %w", err)
		}
	}
	p.stop()
	return nil
}

func (t trial) coldStart(ctx context.Context, c cluster, p *programs, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	begin := time.Now()
	if err := c.start(ctx, p); err != nil {
		return err
	}
	client, err := waitAPI(ctx, c.kubeconfig())
	if err != nil {
		return err
	}
	defer client.close()
	r.APIReady = time.Since(begin)

	firstPod := make(chan error, 1)
	go func() {
		if !t.FirstPod {
			firstPod <- nil
			return
		}
		timing, err := client.runPod(ctx, "first")
		r.FirstPod = timing.running.Sub(begin)
		firstPod <- err
	}()
	ready, err := client.waitNode(ctx, begin)
	r.NodeReady = ready.Sub(begin)
	if err := errors.Join(err, <-firstPod); err != nil {
		return err
	}
	processes, err := clusterProcesses()
	for _, p := range processes {
		r.StartCPU += p.CPU
	}
	return err
}

func (t trial) warmStart(ctx context.Context, c cluster, p *programs, r *result) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	// The node's heartbeat has whole seconds: starting on a full second distinguishes the new run's
	// heartbeats from the old ones.
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second)))
	begin := time.Now()
	if err := c.start(ctx, p); err != nil {
		return err
	}
	client, err := waitAPI(ctx, c.kubeconfig())
	if err != nil {
		return err
	}
	defer client.close()
	r.WarmAPI = time.Since(begin)
	ready, err := client.waitNode(ctx, begin)
	r.WarmNode = ready.Sub(begin)
	return err
}

func (t trial) timePods(ctx context.Context, c cluster, r *result) error {
	if t.Pods == 0 {
		return nil
	}
	client, err := waitAPI(ctx, c.kubeconfig())
	if err != nil {
		return err
	}
	defer client.close()
	for i := range t.Pods {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		name := fmt.Sprintf("pod-%d", i)
		timing, err := client.runPod(ctx, name)
		if err != nil {
			return err
		}
		r.Pods = append(r.Pods, timing.running.Sub(timing.created))
		if err := client.deletePod(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (t trial) watchIdle(ctx context.Context, c cluster, r *result) error {
	if err := pause(ctx, t.Settle); err != nil {
		return err
	}
	if err := t.leaveAlone(ctx, r); err != nil {
		return err
	}
	if t.IdlePods == 0 {
		return nil
	}
	if err := t.startIdlePods(ctx, c); err != nil {
		return err
	}
	if err := pause(ctx, t.Settle); err != nil {
		return err
	}
	var err error
	r.MemoryOfPods, err = clusterProcesses()
	return err
}

// leaveAlone measures the usage of an idle cluster.
func (t trial) leaveAlone(ctx context.Context, r *result) (err error) {
	disk := t.path("disk")
	var files *wear
	if t.OwnDisk {
		// The idle cluster must not pay for the data that the start left in the page cache.
		if err := syncDisk(disk); err != nil {
			return err
		}
		if files, err = startWear(disk, t.path("tracing"), t.group()); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, files.stop()) }()
	}
	before, err := takeLook(disk, t.OwnDisk)
	if err != nil {
		return err
	}
	if err := pause(ctx, t.Idle); err != nil {
		return err
	}
	after, err := takeLook(disk, t.OwnDisk)
	if err != nil {
		return err
	}
	r.Idle, r.Memory = after.since(before), after.processes
	if files != nil {
		r.Idle.Files, err = files.written()
	}
	return err
}

func (t trial) startIdlePods(ctx context.Context, c cluster) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	client, err := waitAPI(ctx, c.kubeconfig())
	if err != nil {
		return err
	}
	defer client.close()
	for i := range t.IdlePods {
		if _, err := client.runPod(ctx, fmt.Sprintf("idle-%d", i)); err != nil {
			return err
		}
	}
	return nil
}

// pause leaves the cluster idle for d, unless it fails first.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
