package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/agent"
)

// stopPatience is the time that stop gives an orderly end before it reports that it still waits.
// The group gives one component 10 s to stop, and components stop one after the other.
const stopPatience = 60 * time.Second

func (m *Machine) Stop(ctx context.Context, all bool) error {
	pid, err := holderOf(m.DataDir)
	if err != nil {
		return err
	}
	steps := m.env.Steps
	switch {
	case pid == 0 && !all:
		fmt.Fprintln(m.env.Stderr, "mote is not running")
		return nil
	case pid != 0:
		err := steps.Do(fmt.Sprintf("Stop mote (pid %d)", pid), func() error { return stopProcess(ctx, pid) })
		if err != nil {
			return err
		}
	}
	if all {
		return steps.Do("Stop the containers", func() error {
			return agent.StopContainers(ctx, m.agentConfig())
		})
	}
	return nil
}

// stopProcess ends the mote that runs as pid and waits until it has ended. If a service manager
// would restart the process, stopProcess stops the service instead.
func stopProcess(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil // it has just ended
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

// supervised reports whether OpenRC restarts mote. systemd needs no check: mote exits with code 0,
// and Restart=on-failure does not restart after that.
func supervised() bool {
	_, err := os.Stat("/run/openrc/started/" + serviceName)
	return err == nil
}

// awaitEnd waits on a pidfd, which becomes readable when its process has ended.
func awaitEnd(ctx context.Context, fd, pid int) error {
	deadline := time.Now().Add(stopPatience)
	const look = 100 * time.Millisecond // delay until the end of ctx is seen; the end of the process is seen at once
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

// RequireRoot returns an error for every user except root.
func RequireRoot(verb string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root; try \"sudo mote %[1]s\"", verb)
	}
	return nil
}

// StopService stops a mote that runs as the service. It does not stop one that a user started.
func (m *Machine) StopService(ctx context.Context) error {
	pid, err := holderOf(m.DataDir)
	if err != nil || pid == 0 {
		return nil // uninstalling the service needs no access to the data directory
	}
	if runsAsService(pid) {
		return m.Stop(ctx, false)
	}
	fmt.Fprintf(m.env.Stderr, "mote (pid %d) does not run as a service and goes on; \"mote stop\" stops it\n", pid)
	return nil
}

// runsAsService reports whether a service manager started process pid: systemd puts it into a
// cgroup with the service's name.
func runsAsService(pid int) bool {
	if supervised() {
		return true
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(groups), "/"+serviceName+".service")
}
