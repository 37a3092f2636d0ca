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

// Changes of several files that belong together are a plan first: one file in <data-dir>/server,
// written whole or not at all. From then on the change happens, whoever crashes: it is carried out
// as often as it takes, then the plan is removed.
const (
	// leavesPlan is carried out at once by the verb that wrote it, or by a server within a minute
	// or at its next start.
	leavesPlan = "certificates.plan"
	// authoritiesPlan is carried out only at the start of a server: the parts of a running one read
	// much of it once.
	authoritiesPlan = "authorities.plan"
)

// plannedFile is one file of a plan.
type plannedFile struct {
	Path string      `json:"path"` // below the data directory, so that a restored one may lie elsewhere
	Mode fs.FileMode `json:"mode"`
	Data []byte      `json:"data"` // none removes the file
}

type plan []plannedFile

func (p *plan) add(path string, data []byte, mode fs.FileMode) {
	*p = append(*p, plannedFile{path, mode, data})
}

// write decides on the change.
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

// FinishRotation carries out a rotation that a verb decided on and was killed over. The files must
// be locked.
func (c *Credentials) FinishRotation() error { return carryOut(string(c.data), c.plan(leavesPlan)) }

// carryOut makes the change of the plan at path, if there is one.
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
