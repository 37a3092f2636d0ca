package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/layout"
)

// Info describes a running sandbox to other processes of the host. The sandbox's directory holds it
// as info.json.
type Info struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// PID is the process ID of the supervisor, "mote run".
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Ready means that Start has returned.
	Ready bool `json:"ready"`
	// Server is the URL of the forwarded API.
	Server string `json:"server,omitempty"`
	// Dir is the directory that keeps the state, or empty.
	Dir string `json:"dir,omitempty"`

	// Init is the process ID of the first process inside. InitTime is its start time, which
	// distinguishes it from a later process with the same ID.
	Init     int    `json:"init"`
	InitTime string `json:"initTime"`
}

const (
	infoFile = "info.json"
	nameFile = "name"
	// nameForm matches a DNS label, so that contexts and hosts can have the name of a sandbox.
	nameForm = `^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`
)

// CheckName returns an error if name cannot be the name of a sandbox.
func CheckName(name string) error {
	if !regexp.MustCompile(nameForm).MatchString(name) {
		return fmt.Errorf("%q is not a name for a sandbox: use 1 to 40 small letters, digits and hyphens, no hyphen at an end", name)
	}
	return nil
}

// List returns the running sandboxes of this host, oldest first. Only root can read them.
func List() ([]Info, error) {
	entries, err := os.ReadDir(StateRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	var all []Info
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(StateRoot, e.Name(), infoFile))
		if err != nil {
			continue // it has not started yet, or has ended
		}
		var i Info
		if err := json.Unmarshal(data, &i); err != nil || i.ID != e.Name() {
			continue // another version wrote it
		}
		if started, err := startOf(i.Init); err == nil && started == i.InitTime {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return a.Started.Compare(b.Started) })
	return all, nil
}

// Find returns the running sandbox called name.
func Find(name string) (Info, error) {
	all, err := List()
	if err != nil {
		return Info{}, err
	}
	var names []string
	for _, i := range all {
		if i.Name == name {
			return i, nil
		}
		names = append(names, i.Name)
	}
	if len(names) == 0 {
		return Info{}, fmt.Errorf("no sandbox is called %q: none runs on this host", name)
	}
	return Info{}, fmt.Errorf("no sandbox is called %q; these run: %s", name, strings.Join(names, ", "))
}

// Env returns the variables with which a command finds the sandbox. Client programs find it by
// KUBECONFIG, containerd's and mote's by the sandbox's sockets.
func (i Info) Env() []string {
	paths := hostPaths{dir: filepath.Join(StateRoot, i.ID)}
	run := rootOf(i.Init) + layout.DefaultRun
	containerd := layout.Run(run).ContainerdSocket()
	return []string{
		"KUBECONFIG=" + paths.kubeconfig(),
		// kubectl's default directory is in the home directory and would stay there.
		"KUBECACHEDIR=" + paths.cache(),
		"MOTE_RUN_DIR=" + run,
		"CONTAINERD_ADDRESS=" + containerd,
		"CONTAINER_RUNTIME_ENDPOINT=unix://" + containerd,
	}
}

// rootOf returns a path to the root directory of process pid.
func rootOf(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/root" }

// startOf returns the start time of process pid, in clock ticks since boot (proc_pid_stat(5), field
// 22).
func startOf(pid int) (string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	// The second field is the program's name in parentheses. The name may contain any character.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields[19], nil
}

// info returns the current Info of s.
func (s *Sandbox) info(ready bool) (Info, error) {
	started, err := startOf(s.init.pid())
	if err != nil {
		return Info{}, fmt.Errorf("look at the sandbox: %w", err)
	}
	i := Info{
		Name: s.cfg.Name, ID: s.id, PID: os.Getpid(), Started: s.started, Ready: ready, Dir: s.cfg.Dir,
		Init: s.init.pid(), InitTime: started,
	}
	if len(s.forwards) > 0 {
		i.Server = s.Server()
	}
	return i, nil
}

// publishInfo writes the file by which other processes find s. It replaces the file atomically.
func (s *Sandbox) publishInfo(ready bool) error {
	i, err := s.info(ready)
	if err != nil {
		return err
	}
	data, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("describe the sandbox: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(s.paths.dir, infoFile), data, 0o600); err != nil {
		return fmt.Errorf("describe the sandbox: %w", err)
	}
	return nil
}

// takeName writes the name of sandbox id, unless another sandbox has it. The caller holds the lock
// on StateRoot and has removed the remains of dead sandboxes.
func takeName(id, name string) error {
	entries, err := os.ReadDir(StateRoot)
	if err != nil {
		return fmt.Errorf("look for other sandboxes: %w", err)
	}
	for _, e := range entries {
		other, err := os.ReadFile(filepath.Join(StateRoot, e.Name(), nameFile))
		if err == nil && string(other) == name {
			return fmt.Errorf("a sandbox called %s runs already; choose another --name, or end that one", name)
		}
	}
	if err := os.WriteFile(filepath.Join(StateRoot, id, nameFile), []byte(name), 0o600); err != nil {
		return fmt.Errorf("write the sandbox's name: %w", err)
	}
	return nil
}
