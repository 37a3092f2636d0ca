package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/mote-k8s/mote/agent"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/pack"
	"github.com/mote-k8s/mote/machine/settings"
)

// Reset stops a running mote and removes the cluster with everything that it made on the machine.
// It calls confirm before it changes anything, unless confirm is nil. Without stopRunning it
// refuses while mote runs.
func (m *Machine) Reset(ctx context.Context, stopRunning bool, confirm func(question string) error) error {
	m, err := m.resumed()
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.DataDir); errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintf(m.env.Stderr, "Nothing to remove: there is no data directory %s\n", m.DataDir)
		return nil
	}
	pid, err := m.Holder()
	if err != nil {
		return err
	}
	if pid != 0 && !stopRunning {
		return fmt.Errorf("mote is running on %s (pid %d); stop it with \"mote stop\", or reset with --force", m.DataDir, pid)
	}
	if confirm != nil {
		if err := confirm("Remove the cluster in " + m.DataDir + " with all its data?"); err != nil {
			return err
		}
	}
	if pid != 0 {
		if err := m.Stop(ctx, false); err != nil {
			return err
		}
	}
	return m.remove(ctx)
}

// remove removes the cluster in steps that can be repeated. The plan exists from the first change
// to the last, so that after a crash the remains are not taken for a whole cluster: "mote server"
// refuses to start on them and "mote reset" continues.
func (m *Machine) remove(ctx context.Context) error {
	lock, err := takeLock(m.DataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := lock.writePID(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("lock data directory: %w", err)
	}
	if err := m.writePlan(); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own file: %w", err)
	}
	steps, data := m.env.Steps, m.data()
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"Remove containers, mounts and the pod network", func() error { return agent.Reset(ctx, m.agentConfig()) }},
		{"Remove " + m.RunDir, func() error { return removeOurs(m.RunDir, layout.OwnsRun) }},
		{"Remove " + m.DataDir, func() error { return removeOurs(m.DataDir, layout.OwnsData, data.ResetPlan(), data.Lock()) }},
		{"Remove what the packed file unpacked", func() error { return pack.Remove(exe) }},
	} {
		if err := steps.Do(step.what, step.do); err != nil {
			return fmt.Errorf("%s: %w; run \"mote reset\" again when that is out of the way", strings.ToLower(step.what[:1])+step.what[1:], err)
		}
	}
	return nil
}

// removeOurs removes the files that mote makes in dir, and dir itself if it is then empty. Foreign
// files stay, and so does a dir that is a mount point. The paths in last are removed after all
// others.
func removeOurs(dir string, owns func(name string) bool, last ...string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	kept := 0
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		switch {
		case slices.Contains(last, path):
		case !owns(entry.Name()):
			kept++
		default:
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	for _, path := range last {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	if kept > 0 || isMountPoint(dir) {
		return nil
	}
	return os.Remove(dir)
}

func isMountPoint(dir string) bool {
	self, err := os.Stat(dir)
	if err != nil {
		return false
	}
	parent, err := os.Stat(filepath.Dir(dir))
	return err == nil && !sameDevice(self, parent)
}

func sameDevice(a, b fs.FileInfo) bool {
	x, ok := a.Sys().(*syscall.Stat_t)
	y, also := b.Sys().(*syscall.Stat_t)
	return ok && also && x.Dev == y.Dev
}

// plan is the plan of a reset that has begun. It contains everything that the steps need, so that a
// resumed reset needs no flags.
type plan struct {
	RunDir     string `json:"runDir"`
	KubeletDir string `json:"kubeletDir"`
}

func (m *Machine) writePlan() error {
	err := m.tryWritePlan()
	if errors.Is(err, syscall.ENOSPC) {
		// Every start unpacks these programs again, so they may be removed before the plan exists.
		if err := os.RemoveAll(m.data().Payload()); err != nil {
			return fmt.Errorf("make room for the plan of the reset: %w", err)
		}
		err = m.tryWritePlan()
	}
	if err != nil {
		return DiskHint(fmt.Errorf("write the plan of the reset: %w", err))
	}
	return nil
}

func (m *Machine) tryWritePlan() error {
	data, err := json.Marshal(plan{m.RunDir, m.KubeletDir})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(m.data().ResetPlan(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// resumed returns m with the directories of an interrupted reset, if there was one.
func (m *Machine) resumed() (*Machine, error) {
	data, err := os.ReadFile(m.data().ResetPlan())
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the plan of the reset: %w", err)
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil || p.RunDir == "" {
		return m, nil // interrupted while the plan was written: nothing was removed yet
	}
	return m.with(func(s *settings.Settings) { s.RunDir, s.KubeletDir = p.RunDir, p.KubeletDir }), nil
}

// checkNoReset refuses to start on a data directory that a reset has partly removed.
func checkNoReset(dir string) error {
	if _, err := os.Stat(layout.Data(dir).ResetPlan()); err == nil {
		return fmt.Errorf("data directory %s is half removed: a reset was interrupted; run \"mote reset\" again", dir)
	}
	return nil
}
