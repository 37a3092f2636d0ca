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
	// stopGrace is how long containers may take after SIGTERM. It is shorter than a pod's usual
	// 30 s because the whole machine waits.
	stopGrace = 10 * time.Second
	// killTimeout bounds the wait after SIGKILL, which only processes stuck in the kernel outlast.
	killTimeout = 30 * time.Second
	// groupPoll is how often a cgroup is looked at while it empties; v1 has no event for it.
	groupPoll = 20 * time.Millisecond
)

// StopContainers ends all containers and shims of this node and unmounts what they had mounted. mote must
// not be running on the same directories. Running it again, or with nothing to stop, is fine.
func StopContainers(ctx context.Context, c Config) error {
	trees, err := mountedCgroups()
	if err != nil {
		return err
	}
	// Those that do not listen are killed next; only a caller who gave up matters here.
	if err := endGroup(ctx, trees, podCgroup, unix.SIGTERM, stopGrace); err != nil && ctx.Err() != nil {
		return err
	}
	return killContainers(ctx, c)
}

// killContainers is StopContainers for containers whose data goes with them.
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
	// Before and after: what was mounted below before the kubelet's bind is hidden by it.
	_ = unmountBelow(kubelet)
	return errors.Join(unmountBelow(run), removeKubeletBinds(c), unmountBelow(kubelet))
}

// endGroup sends signal to all processes of group and below and waits until there are none. Processes
// that appear meanwhile get it too.
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
