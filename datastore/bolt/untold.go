package bolt

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/mote-k8s/mote/internal/durable"
)

// maxUntold bounds the list of repairs that nobody was told of: a disk that fails makes a new one with each start.
const maxUntold = 100

// untoldPath is where repairs are kept, beside the store, until whoever looks after it has been told: who opens a store for a moment,
// as "mote datastore get" does, repairs it too.
func untoldPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".repairs.json"
}

// loadUntold returns what earlier starts repaired. A list that cannot be read does not keep the store from being opened.
func loadUntold(path string) []Repair {
	data, err := os.ReadFile(untoldPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list []Repair
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		slog.Warn("earlier repairs of the datastore cannot be told", "component", "datastore", "path", untoldPath(path), "error", err)
	}
	return list
}

// note adds to what has to be told.
func (o *opening) note(r Repair) {
	o.repairs = append(o.repairs, r)
	o.repairs = o.repairs[max(0, len(o.repairs)-maxUntold):]
	data, err := json.MarshalIndent(o.repairs, "", "  ")
	if err == nil {
		err = durable.WriteFile(untoldPath(o.path), data, 0o600)
	}
	if err != nil {
		slog.Warn("repair of the datastore will not be told after a restart", "component", "datastore", "path", untoldPath(o.path), "error", err)
	}
}

// Repairs returns what this start repaired, and earlier ones since RepairsTold was last called, the oldest first.
func (s *Store) Repairs() []Repair { return s.repairs }

// RepairsTold says that whoever looks after the store knows of its Repairs: the next Open does not return them again.
func (s *Store) RepairsTold() error {
	err := os.Remove(untoldPath(s.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, durable.SyncDir(dirOf(s.path)))
}
