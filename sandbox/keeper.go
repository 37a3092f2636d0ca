package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mote-k8s/mote/internal/layout"
)

// StateRoot holds a directory for each sandbox of the host. It exists only while a sandbox does.
const StateRoot = layout.Sandboxes

// marker is an environment variable of every process that is started against a sandbox. By it the
// keeper finds the processes wherever they went: a process can leave its process group and session,
// but it does not lose this variable by accident.
const marker = "MOTE_SANDBOX"

// removeTimeout bounds the removal of one sandbox. Killed processes end in milliseconds. A process
// that hangs in the kernel (a dead network file system) must not block the caller for ever.
const removeTimeout = 10 * time.Second

// made is the keeper's message to the supervisor. The first message names everything that the
// keeper made, or the error that prevented it. If the removal fails, a second message at the end
// has its error.
type made struct {
	Dir     string   `json:"dir,omitempty"`
	Cgroups []string `json:"cgroups,omitempty"`
	Error   string   `json:"error,omitempty"`
}

// Keep does the work of the keeper (the verb VerbKeeper). It makes what sandbox id, called name,
// needs on the host, reports that on reply, waits for the end of lifeline, and removes everything.
// The supervisor holds the other end of lifeline, so Keep notices every kind of end of the
// supervisor.
func Keep(id, name string, lifeline io.Reader, reply io.Writer) error {
	// A signal that ends the supervisor must not end its keeper. A reply that nobody reads is no
	// error.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
	if !regexp.MustCompile(`^[0-9a-f]{8}$`).MatchString(id) {
		return fmt.Errorf("%q is not the id of a sandbox", id)
	}
	if err := CheckName(name); err != nil {
		return err
	}
	out := json.NewEncoder(reply)
	lock, m, err := makeHost(id, name)
	if err != nil {
		m.Error = err.Error()
	}
	if lock != nil {
		defer lock.Close()
	}
	_ = out.Encode(m)
	_, _ = io.Copy(io.Discard, lifeline)
	if err := removeHost(id); err != nil {
		_ = out.Encode(made{Error: err.Error()})
		return err
	}
	return nil
}

// makeHost makes the sandbox's directory and its cgroups. A lock on the directory shows that the
// keeper is alive.
func makeHost(id, name string) (lock *os.File, m made, err error) {
	m.Dir = filepath.Join(StateRoot, id)
	err = withStateRoot(func() error {
		if err := removeStale(); err != nil {
			return err
		}
		if err := os.Mkdir(m.Dir, 0o700); err != nil {
			return fmt.Errorf("make the sandbox's directory: %w", err)
		}
		var err error
		lock, err = os.OpenFile(lockPath(id), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("make the sandbox's lock: %w", err)
		}
		if err := flock(lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err
		}
		return takeName(id, name)
	})
	if err != nil {
		return lock, m, err
	}
	m.Cgroups, err = makeCgroups(cgroupName(id))
	return lock, m, err
}

func lockPath(id string) string   { return filepath.Join(StateRoot, id, "lock") }
func cgroupName(id string) string { return "mote-sandbox-" + id }

// withStateRoot calls do while no other keeper makes, sweeps or removes a directory in StateRoot.
func withStateRoot(do func() error) error {
	for {
		if err := os.MkdirAll(StateRoot, 0o700); err != nil {
			return fmt.Errorf("make the sandboxes' directory: %w", err)
		}
		f, err := os.Open(StateRoot)
		if errors.Is(err, os.ErrNotExist) {
			continue // the last sandbox has just removed it
		}
		if err != nil {
			return fmt.Errorf("open the sandboxes' directory: %w", err)
		}
		if err := flock(f, unix.LOCK_EX); err != nil {
			f.Close()
			return err
		}
		if !stillThere(f) {
			f.Close()
			continue
		}
		err = do()
		f.Close()
		return err
	}
}

// stillThere reports whether StateRoot is still the directory that f has open.
func stillThere(f *os.File) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(StateRoot)
	return err == nil && os.SameFile(opened, now)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// removeStale removes the remains of sandboxes whose keeper was killed. The caller holds the lock
// on StateRoot.
func removeStale() error {
	entries, err := os.ReadDir(StateRoot)
	if err != nil {
		return fmt.Errorf("look for remains of sandboxes: %w", err)
	}
	for _, e := range entries {
		id := e.Name()
		lock, err := os.OpenFile(lockPath(id), os.O_RDWR, 0)
		if err == nil {
			err = flock(lock, unix.LOCK_EX|unix.LOCK_NB)
			if errors.Is(err, unix.EWOULDBLOCK) {
				lock.Close()
				continue // its keeper is alive
			}
		}
		if err == nil || errors.Is(err, os.ErrNotExist) {
			err = removeParts(id)
		}
		if lock != nil {
			lock.Close()
		}
		if err != nil {
			return fmt.Errorf("remove the remains of sandbox %s: %w", id, err)
		}
	}
	return nil
}

// removeHost removes everything of sandbox id, and StateRoot after the last one.
func removeHost(id string) error {
	if err := removeProcesses(id); err != nil {
		return err // before the lock on StateRoot is taken: other keepers need not wait for this
	}
	return withStateRoot(func() error {
		err := removeParts(id)
		_ = os.Remove(StateRoot) // not empty while there are others
		return err
	})
}

// removeParts removes sandbox id. Its directory goes last, so that the next keeper finds everything
// that could not be removed.
func removeParts(id string) error {
	if err := removeProcesses(id); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(StateRoot, id)); err != nil {
		return fmt.Errorf("remove the sandbox's directory: %w", err)
	}
	return nil
}

// removeProcesses kills the processes that have the marker and those in the cgroups, and removes
// the cgroups.
func removeProcesses(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	if err := killMarked(ctx, marker+"="+id); err != nil {
		return err
	}
	return removeCgroups(ctx, cgroupName(id))
}

// killMarked kills every process whose environment holds entry, until there is none.
func killMarked(ctx context.Context, entry string) error {
	for {
		pids, err := marked(entry)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // the process may have ended already
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("cannot end processes %v of the sandbox", pids)
		}
	}
}

// marked lists the processes whose environment, at the time of their execution, holds entry. A dead
// process that its parent has not waited for has no environment.
func marked(entry string) ([]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		environ, err := os.ReadFile(filepath.Join("/proc", d.Name(), "environ"))
		if err != nil {
			continue // the process has ended meanwhile
		}
		if bytes.Contains(append([]byte{0}, environ...), []byte("\x00"+entry+"\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// pause waits a moment between two checks of something that sends no event.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Millisecond):
		return nil
	}
}

// keeper is the supervisor's side of its keeper.
type keeper struct {
	id       string
	cmd      *exec.Cmd
	lifeline *os.File // closing it makes the keeper remove everything
	reply    *os.File
	replies  *json.Decoder
}

// startKeeper starts a keeper in a session of its own. The keeper holds lock, if there is one, as
// long as it lives. startKeeper itself makes nothing on the host: the keeper exists before anything
// else does.
func startKeeper(exe, id, name string, lock *os.File) (*keeper, error) {
	lifeEnd, lifeline, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	defer lifeEnd.Close()
	reply, replyEnd, err := os.Pipe()
	if err != nil {
		lifeline.Close()
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	defer replyEnd.Close()
	cmd := exec.Command(exe, VerbKeeper, id, name)
	// Without a marker, a keeper in the command of another sandbox outlives that sandbox.
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout = lifeEnd, replyEnd
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if lock != nil {
		cmd.ExtraFiles = []*os.File{lock}
	}
	if err := cmd.Start(); err != nil {
		lifeline.Close()
		reply.Close()
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	return &keeper{id: id, cmd: cmd, lifeline: lifeline, reply: reply, replies: json.NewDecoder(reply)}, nil
}

// made waits for the keeper's first message.
func (k *keeper) made(ctx context.Context) (made, error) {
	stop := context.AfterFunc(ctx, func() { k.reply.SetReadDeadline(time.Unix(1, 0)) })
	var m made
	err := k.replies.Decode(&m)
	if !stop() {
		return m, context.Cause(ctx)
	}
	if err != nil {
		return m, fmt.Errorf("prepare the host: the keeper ended: %w", err)
	}
	if m.Error != "" {
		return m, fmt.Errorf("prepare the host: %s", m.Error)
	}
	return m, nil
}

// close makes the keeper remove everything. If the keeper is gone, it removes everything itself.
func (k *keeper) close() error {
	defer k.reply.Close()
	k.lifeline.Close()
	k.reply.SetReadDeadline(time.Time{})
	var last made
	for {
		var m made
		if err := k.replies.Decode(&m); err != nil {
			break // the keeper closed its end: it is done
		}
		last = m
	}
	err := k.cmd.Wait()
	switch {
	case err == nil:
		return nil
	case k.cmd.ProcessState.Exited() && last.Error != "":
		return errors.New(last.Error)
	default:
		return removeHost(k.id)
	}
}
