package agent

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stopGrace is the time that containers may take after SIGTERM. It is shorter than a pod's
	// usual 30 s because the whole machine waits.
	stopGrace = 10 * time.Second
	// killTimeout bounds the wait after SIGKILL. Only processes that are stuck in the kernel take
	// longer.
	killTimeout = 30 * time.Second
	// groupPoll is the interval at which a cgroup is checked while it empties. cgroup v1 has no
	// event for it.
	groupPoll = 20 * time.Millisecond
)

// StopContainers ends all containers and shims of this node and unmounts what they had mounted.
// mote must not run on the same directories. It may run again, and it succeeds if there is nothing
// to stop.
func StopContainers(ctx context.Context, c Config) error {
	trees, err := mountedCgroups()
	if err != nil {
		return err
	}
	// The next step kills processes that ignore the signal. So an error counts only if the caller's
	// ctx has ended.
	if err := endGroup(ctx, trees, podCgroup, unix.SIGTERM, stopGrace); err != nil && ctx.Err() != nil {
		return err
	}
	return killContainers(ctx, c)
}

// killContainers ends containers and shims as StopContainers does, without waiting for containers
// to stop by themselves. It is for containers whose data is deleted too.
func killContainers(ctx context.Context, c Config) error {
	trees, err := mountedCgroups()
	if err != nil {
		return err
	}
	for _, group := range []string{podCgroup, shimCgroup} {
		if err := endGroup(ctx, trees, group, unix.SIGKILL, killTimeout); err != nil {
			return err
		}
	}
	run, kubelet := followed(c.RunDir), followed(c.KubeletDir)
	// This unmounts before and after the kubelet's bind is removed. The bind hides everything that
	// was mounted below the directory before it.
	_ = unmountBelow(kubelet)
	return errors.Join(unmountBelow(run), removeKubeletBinds(c), unmountBelow(kubelet))
}

// endGroup sends signal to all processes of group and the groups below, and waits until there are
// none. It also sends signal to processes that appear meanwhile.
func endGroup(ctx context.Context, trees []hierarchy, group string, signal syscall.Signal, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(groupPoll)
	defer ticker.Stop()
	sent := map[int]bool{}
	for {
		pids, err := processesIn(trees, group)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if sent[pid] {
				continue
			}
			sent[pid] = true
			if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("end process %d: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes %v of cgroup %s still run after %s: %w", pids, group, signal, ctx.Err())
		case <-ticker.C:
		}
	}
}
