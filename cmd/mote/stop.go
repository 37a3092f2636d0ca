package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/cmd/mote/settings"
)

// stopPatience is how long stop waits for an orderly end before it says so: the group's own limit for
// one part is 10 s, and parts stop one after the other.
const stopPatience = 60 * time.Second

// newStopCommand returns the verb that stops the mote of this machine.
func newStopCommand(e *env) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "stop",
		Short:   "Stop mote; containers go on unless --all is given",
		Long:    "Stop the running mote and wait until it is gone. Containers go on without it and are found again at the next start.",
		GroupID: groupRun,
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&all, "all", false, "stop the containers too")
	load := withSettings(cmd, e, cmd.Name())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := load()
		if err != nil {
			return err
		}
		if err := requireRoot("stop"); err != nil {
			return err
		}
		return stop(cmd.Context(), e, s, all)
	}
	return cmd
}

func stop(ctx context.Context, e *env, s *settings.Settings, all bool) error {
	pid, err := holderOf(s.DataDir)
	if err != nil {
		return err
	}
	steps := newSteps(e)
	switch {
	case pid == 0 && !all:
		fmt.Fprintln(e.stderr, "mote is not running")
		return nil
	case pid != 0:
		err := steps.do(fmt.Sprintf("Stop mote (pid %d)", pid), func() error { return stopProcess(ctx, pid) })
		if err != nil {
			return err
		}
	}
	if all {
		return steps.do("Stop the containers", func() error {
			return agent.StopContainers(ctx, agentConfig(s))
		})
	}
	return nil
}

// stopProcess ends the mote that runs as pid and waits until it is gone. A service manager that
// would start it again is asked instead of the process.
func stopProcess(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // just ended
	}
	if err != nil {
		return fmt.Errorf("look at pid %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if supervised() {
		if out, err := exec.CommandContext(ctx, "rc-service", serviceName, "stop").CombinedOutput(); err != nil {
			return fmt.Errorf("rc-service %s stop: %w: %s", serviceName, err, out)
		}
	} else if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal pid %d: %w", pid, err)
	}
	return awaitEnd(ctx, fd, pid)
}

// supervised tells whether OpenRC keeps mote running. systemd need not be asked: mote ends with
// code 0 there, which Restart=on-failure leaves alone.
func supervised() bool {
	_, err := os.Stat("/run/openrc/started/" + serviceName)
	return err == nil
}

// awaitEnd waits on a pidfd, which becomes readable when its process has ended.
func awaitEnd(ctx context.Context, fd, pid int) error {
	deadline := time.Now().Add(stopPatience)
	const look = 100 * time.Millisecond // how soon ctx's end is seen; the process' end is seen at once
	for ctx.Err() == nil && time.Now().Before(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(look.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for pid %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("mote (pid %d) has not ended within %s; see its log, or end it with \"kill -9 %[1]d\"", pid, stopPatience)
}

// requireRoot refuses to go on as anybody else.
func requireRoot(verb string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root; try \"sudo mote %[1]s\"", verb)
	}
	return nil
}
