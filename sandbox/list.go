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

// Info describes a running sandbox to other processes of the host. Its directory holds it as info.json.
type Info struct {
	Name string `json:"name"`
	ID   string `json:"id"`
	// PID is the supervisor, "mote run".
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Ready says that Start has returned.
	Ready bool `json:"ready"`
	// Server is the URL of the forwarded API.
	Server string `json:"server,omitempty"`
	// Dir keeps the state, or is empty.
	Dir string `json:"dir,omitempty"`

	// Init is the first process inside, and InitTime its start, by which it is known from a later process of its number.
	Init     int    `json:"init"`
	InitTime string `json:"initTime"`
}

const (
	infoFile = "info.json"
	nameFile = "name"
	// nameForm is a DNS label, so that contexts and hosts can be called after a sandbox.
	nameForm = `^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`
)

// CheckName returns what is wrong with a name for a sandbox.
func CheckName(name string) error {
	if !regexp.MustCompile(nameForm).MatchString(name) {
		return fmt.Errorf("%q is not a name for a sandbox: use 1 to 40 small letters, digits and hyphens, no hyphen at an end", name)
	}
	return nil
}

// List returns the running sandboxes of this host, oldest first. Only root sees them.
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
			continue // it has not begun yet, or is gone
		}
		var i Info
		if err := json.Unmarshal(data, &i); err != nil || i.ID != e.Name() {
			continue // written by another version
		}
		if started, err := startOf(i.Init); err == nil && started == i.InitTime {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b Info) int { return a.Started.Compare(b.Started) })
	return all, nil
}

// Find returns the running sandbox that is called name.
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

// Env returns what the environment of a command needs so that it finds the sandbox: client programs by
// KUBECONFIG, containerd's and mote's by the sandbox's sockets.
func (i Info) Env() []string {
	paths := hostPaths{dir: filepath.Join(StateRoot, i.ID)}
	run := rootOf(i.Init) + layout.DefaultRun
	containerd := layout.Run(run).ContainerdSocket()
	return []string{
		"KUBECONFIG=" + paths.kubeconfig(),
		"KUBECACHEDIR=" + paths.cache(), // kubectl's default is in the home directory, and stays
		"MOTE_RUN_DIR=" + run,
		"CONTAINERD_ADDRESS=" + containerd,
		"CONTAINER_RUNTIME_ENDPOINT=unix://" + containerd,
	}
}

// rootOf is a path to the root directory of process pid.
func rootOf(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/root" }

// startOf is when process pid was started, in clock ticks since boot (proc_pid_stat(5), field 22).
func startOf(pid int) (string, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	// The second field is the program's name in parentheses, which may hold anything.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields[19], nil
}

// info describes s as it is now.
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

// publishInfo lets other processes find s. The file is replaced whole.
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

// takeName writes the name of sandbox id, unless another one has it. The caller holds StateRoot, and the remains of
// dead sandboxes are gone.
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
