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

// spec holds the orders that the supervisor sends through a pipe to the sandbox's first process,
// when the host's side is ready.
type spec struct {
	Stage    string   // a directory of the host to mount on; only this mount namespace sees the mount
	Exe      string   // the mote file
	Args     []string // its arguments
	Dir      string   // the directory for the state, or empty
	Images   []string
	Hostname string
}

// statusFD is the descriptor through which Enter reports an error to the supervisor. It closes when
// the server is executed. An end without an error means success.
const statusFD = 3

// exeInside is the path of the mote file inside, wherever it is on the host.
const exeInside = insideDir + "/bin/mote"

// insideDir holds the files of the sandbox itself inside.
const insideDir = "/run/sandbox"

// Enter does the work of the sandbox's first process (the verb VerbInit) up to the server. It waits
// on gate for its orders, turns the fresh namespaces into the sandbox, and returns the program that
// the same process must execute. It locks the calling goroutine to its thread, the only one in the
// new cgroup namespace. So the caller must execute from the same goroutine.
func Enter(gate io.Reader) (argv, env []string, err error) {
	runtime.LockOSThread()
	unix.CloseOnExec(statusFD)
	argv, env, err = enter(gate)
	if err != nil {
		// The supervisor reports this error. The returned one only goes to the log.
		_, _ = unix.Write(statusFD, []byte(err.Error()))
		return nil, nil, fmt.Errorf("enter the sandbox: %w", err)
	}
	return argv, env, nil
}

func enter(gate io.Reader) (argv, env []string, err error) {
	// The supervisor is the parent. The keeper notices its death too, but may be killed together
	// with it.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return nil, nil, fmt.Errorf("follow the supervisor: %w", err)
	}
	var sp spec
	if err := json.NewDecoder(gate).Decode(&sp); err != nil {
		return nil, nil, fmt.Errorf("the supervisor ended: %w", err)
	}
	unix.Umask(0o022) // the caller's may be too strict for containers
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
	// The server would load kernel modules. They change the host and outlive the sandbox.
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_MODULE, 0, 0, 0); err != nil {
		return nil, nil, fmt.Errorf("give up loading kernel modules: %w", err)
	}
	return append([]string{exeInside}, sp.Args...), environ(), nil
}

// environ returns the server's environment. It contains nothing of the caller's, so that a sandbox
// is the same for every caller.
func environ() []string {
	return []string{
		"PATH=" + filepath.Dir(exeInside) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LANG=C.UTF-8",
	}
}

// enterCgroups makes this process see its groups, which the supervisor has chosen, as the tops of
// their hierarchies.
func enterCgroups() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	return nil
}
