package sandbox

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// spec is what the supervisor tells the sandbox's first process, through a pipe, once the host's
// side is ready.
type spec struct {
	Stage    string   // a directory of the host to mount on; only this mount namespace sees it
	Exe      string   // the mote file
	Args     []string // its arguments
	Dir      string   // where state is kept, or empty
	Images   []string
	Hostname string
}

// statusFD is where Enter tells the supervisor what went wrong. It closes when the server is
// executed, which tells that nothing did.
const statusFD = 3

// exeInside is where the mote file is inside, wherever the host has it.
const exeInside = insideDir + "/bin/mote"

// insideDir holds what a sandbox needs of its own inside.
const insideDir = "/run/sandbox"

// Enter is the life of the sandbox's first process, the verb VerbInit, up to the server: it waits
// on gate until it may go on, turns the fresh namespaces into the sandbox, and returns what to
// execute there, as the same process. It locks the calling goroutine to its thread, which is the only
// one in the new cgroup namespace: the caller must execute from the same goroutine.
func Enter(gate io.Reader) (argv, env []string, err error) {
	runtime.LockOSThread()
	unix.CloseOnExec(statusFD)
	argv, env, err = enter(gate)
	if err != nil {
		// The supervisor says it; what is returned here lands in the log.
		_, _ = unix.Write(statusFD, []byte(err.Error()))
		return nil, nil, fmt.Errorf("enter the sandbox: %w", err)
	}
	return argv, env, nil
}

func enter(gate io.Reader) (argv, env []string, err error) {
	// The supervisor is the parent. The keeper sees its death too, but may be killed with it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return nil, nil, fmt.Errorf("follow the supervisor: %w", err)
	}
	var sp spec
	if err := json.NewDecoder(gate).Decode(&sp); err != nil {
		return nil, nil, fmt.Errorf("the supervisor ended: %w", err)
	}
	unix.Umask(0o022) // the caller's may be stricter than containers can live with
	if err := unix.Sethostname([]byte(sp.Hostname)); err != nil {
		return nil, nil, fmt.Errorf("set the host's name: %w", err)
	}
	if err := enterCgroups(); err != nil {
		return nil, nil, err
	}
	if err := newRoot(sp); err != nil {
		return nil, nil, err
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("set the loopback device up: %w", err)
	}
	// The server would load kernel modules, which change the host and outlive the sandbox.
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_MODULE, 0, 0, 0); err != nil {
		return nil, nil, fmt.Errorf("give up loading kernel modules: %w", err)
	}
	return append([]string{exeInside}, sp.Args...), environ(), nil
}

// environ is the server's environment: nothing of the caller's, so that a sandbox is the same
// whoever starts it.
func environ() []string {
	return []string{
		"PATH=" + filepath.Dir(exeInside) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LANG=C.UTF-8",
	}
}

// enterCgroups makes the groups that the supervisor put this process into the tops of what it sees.
func enterCgroups() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	return nil
}
