package pki

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mote-k8s/mote/internal/dirlock"
	"github.com/mote-k8s/mote/internal/durable"
)

// A change of several files that belong together is first written as a plan: one file in
// <data-dir>/server, written whole or not at all. From then on the change happens, even after
// crashes: the plan is applied as often as necessary and then removed.
const (
	// leavesPlan is applied at once by the verb that wrote it, or by a server within a minute or at
	// its next start.
	leavesPlan = "certificates.plan"
	// authoritiesPlan is applied only at the start of a server: the components of a running one
	// read many of these files only once.
	authoritiesPlan = "authorities.plan"
)

// plannedFile is one file of a plan.
type plannedFile struct {
	Path string      `json:"path"` // below the data directory, so that a restored one may be in another place
	Mode fs.FileMode `json:"mode"`
	Data []byte      `json:"data"` // empty: remove the file
}

type plan []plannedFile

func (p *plan) add(path string, data []byte, mode fs.FileMode) {
	*p = append(*p, plannedFile{path, mode, data})
}

// write writes the plan, which makes the change final.
func (p plan) write(dataDir, path string) error {
	for i := range p {
		rel, err := filepath.Rel(dataDir, p[i].Path)
		if err != nil || !filepath.IsLocal(rel) {
			return fmt.Errorf("cannot change %s together with the files in %s: it lies elsewhere", p[i].Path, dataDir)
		}
		p[i].Path = rel
	}
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return durable.WriteFile(path, data, 0o600)
}

// FinishRotation applies a rotation that a verb planned before it was killed. The files must be
// locked.
func (c *Credentials) FinishRotation() error { return carryOut(string(c.data), c.plan(leavesPlan)) }

// carryOut applies the plan at path, if there is one, and removes it.
func carryOut(dataDir, path string) error {
	p, err := readPlan(path)
	if err != nil || p == nil {
		return err
	}
	for _, file := range p {
		if err := file.apply(dataDir); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func readPlan(path string) (plan, error) {
	data, err := readOptional(path)
	if err != nil || data == nil {
		return nil, err
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("read %s: %w; restore server/ from a backup, or remove this file to go without the change", path, err)
	}
	return p, nil
}

func (f plannedFile) apply(dataDir string) error {
	if !filepath.IsLocal(f.Path) {
		return fmt.Errorf("cannot change %s: it is not in %s", f.Path, dataDir)
	}
	path := filepath.Join(dataDir, f.Path)
	if len(f.Data) > 0 {
		if err := durable.MakeDir(filepath.Dir(path)); err != nil {
			return err
		}
		return durable.UpdateFile(path, f.Data, f.Mode)
	}
	return durable.RemoveFile(path)
}

// Lock keeps other processes from writing certificates until release is called: a running server
// renews them while a verb may rotate them. MakeDirs must have been called before.
func (c *Credentials) Lock() (release func(), err error) {
	tlsDir := c.Path("")
	if release, err = dirlock.LockBriefly(tlsDir); errors.Is(err, fs.ErrNotExist) {
		return nil, goneError(tlsDir, err)
	} else if err != nil {
		return nil, fmt.Errorf("cannot change certificates: %w; another \"mote certs\" or a server that starts has it, try again", err)
	}
	return release, nil
}
