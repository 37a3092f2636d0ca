package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A trial runs in a chain of three processes of this program:
//
//	bench           on the host; creates the directory and reads the result from it
//	bench init      process ID 1 of fresh namespaces and of a cgroup; mounts, reaps, nothing else
//	bench trial     starts the cluster and measures it from inside
//
// When init ends, for whatever reason, the kernel kills every process of its PID namespace and
// drops its mounts, network and loop device. Only the directory and the cgroups remain to be
// removed.

// isolate runs t in fresh namespaces and returns its measurements. It leaves nothing behind.
func isolate(ctx context.Context, t trial) (result, error) {
	var r result
	trees, err := hierarchies()
	if err != nil {
		return r, err
	}
	if err := writeJSON(t.path("trial.json"), t); err != nil {
		return r, err
	}
	runErr := runInit(ctx, t)
	if err := removeGroups(trees, t.group()); err != nil {
		return r, errors.Join(runErr, err)
	}
	if runErr != nil {
		return r, fmt.Errorf("trial of %s: %w", t.Flavour, runErr)
	}
	data, err := os.ReadFile(t.path("result.json"))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", t.path("result.json"), err)
	}
	return r, nil
}

func runInit(ctx context.Context, t trial) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// The parent-death signal comes when the thread that forked ends, so that thread must not end
	// early.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, self, "init", t.path("trial.json"))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // ^C reaches the host process alone, which then ends the trial
	}
	return cmd.Run()
}

// runAsInit is process ID 1: it prepares the namespaces, starts the trial and reaps until the trial
// ends. It returns the trial's exit code.
func runAsInit(specPath string) (int, error) {
	// The cgroup namespace belongs to one thread; the trial must be forked from that one.
	runtime.LockOSThread()
	t, err := readTrial(specPath)
	if err != nil {
		return 1, err
	}
	if err := enterGroups(t.group()); err != nil {
		return 1, err
	}
	if err := mountPrivate(t); err != nil {
		return 1, err
	}
	if err := unix.Sethostname([]byte(nodeName)); err != nil {
		return 1, fmt.Errorf("set host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return 1, err
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	child, err := os.StartProcess(self, []string{self, "trial", specPath}, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{nil, os.Stderr, os.Stderr},
	})
	if err != nil {
		return 1, fmt.Errorf("start trial: %w", err)
	}
	return reapUntil(child.Pid)
}

// enterGroups moves into a new cgroup and makes it the root of a cgroup namespace and of its
// mounts.
func enterGroups(name string) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	if err := joinGroups(trees, name); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make cgroup namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for target, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs"} {
		if err := unix.Mount(kind, target, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return mountGroups(trees)
}

// mountPrivate mounts the trial's own directories over every place that a cluster writes to.
func mountPrivate(t trial) error {
	if t.OwnDisk {
		if err := mountDisk(t); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"lib": "/var/lib", "log": "/var/log"} {
		source := filepath.Join(t.path("disk"), name)
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	hide := []string{"/run"}
	if _, err := os.Stat("/etc/mote"); err == nil {
		hide = append(hide, "/etc/mote") // an installed mote's settings are not the defaults
	}
	for _, target := range hide {
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return nil
}

// mountDisk gives the trial a file system of its own in a file. So only this cluster writes the
// sectors of its block device, the journal included.
func mountDisk(t trial) error {
	image := t.path("disk.img")
	file, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(file.Truncate(diskSize), file.Close()); err != nil {
		return fmt.Errorf("make %s: %w", image, err)
	}
	for _, args := range [][]string{
		// Without these options a fresh ext4 continues to write its tables for minutes.
		{"mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image},
		{"mount", "-n", "-o", "loop", image, t.path("disk")},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// reapUntil reaps every child, its own ones and the orphans that become children of process ID 1,
// until pid ends.
func reapUntil(pid int) (int, error) {
	for {
		var status syscall.WaitStatus
		dead, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return 1, fmt.Errorf("wait for the trial: %w", err)
		}
		if dead == pid {
			if status.Signaled() {
				return 1, fmt.Errorf("trial ended by signal %s", status.Signal())
			}
			return status.ExitStatus(), nil
		}
	}
}
