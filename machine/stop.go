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

// stopPatience is how long stop waits for an orderly end before it says so: the group's own limit for
// one part is 10 s, and parts stop one after the other.
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

// RequireRoot refuses to go on as anybody else.
func RequireRoot(verb string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%s needs root; try \"sudo mote %[1]s\"", verb)
	}
	return nil
}

// StopService stops a mote that runs as the service. One that somebody started is left alone.
func (m *Machine) StopService(ctx context.Context) error {
	pid, err := holderOf(m.DataDir)
	if err != nil || pid == 0 {
		return nil // who cannot look at the data directory may take the service away all the same
	}
	if runsAsService(pid) {
		return m.Stop(ctx, false)
	}
	fmt.Fprintf(m.env.Stderr, "mote (pid %d) does not run as a service and goes on; \"mote stop\" stops it\n", pid)
	return nil
}

// runsAsService tells whether a service manager started process pid: systemd puts it into a group of the service's name.
func runsAsService(pid int) bool {
	if supervised() {
		return true
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	return err == nil && strings.Contains(string(groups), "/"+serviceName+".service")
}
