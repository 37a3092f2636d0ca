package rescue

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mote-k8s/mote/internal/durable"
)

// Repair describes one repair of damaged files by a start.
type Repair struct {
	Time time.Time `json:"time"`
	// What describes the damage and the repair.
	What string `json:"what"`
	// Lost describes the data that is lost. It is empty if everything that was promised to a client
	// is kept.
	Lost string `json:"lost,omitempty"`
	// Aside are the paths of the damaged files, which are unchanged.
	Aside []string `json:"aside,omitempty"`
}

// maxUnreported limits the list of unreported repairs: a disk that fails adds one with each start.
const maxUnreported = 100

// unreportedPath returns the path of the list of unreported repairs. A command that opens a store
// for a moment, such as "mote datastore get", repairs it too; the next server reports that repair.
func unreportedPath(path string) string {
	return strings.TrimSuffix(path, filepath.Ext(path)) + ".repairs.json"
}

// loadUnreported returns the repairs of earlier starts. It logs a list that cannot be read; the
// store can still be opened.
func loadUnreported(path string) []Repair {
	data, err := os.ReadFile(unreportedPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list []Repair
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		slog.Warn("earlier repairs of the datastore cannot be reported", "component", "datastore", "path", unreportedPath(path), "error", err)
	}
	return list
}

// addUnreported stores list with r behind it, and returns it. It keeps the newest maxUnreported.
func addUnreported(path string, list []Repair, r Repair) []Repair {
	list = append(list, r)
	list = list[max(0, len(list)-maxUnreported):]
	data, err := json.MarshalIndent(list, "", "  ")
	if err == nil {
		err = durable.WriteFile(unreportedPath(path), data, 0o600)
	}
	if err != nil {
		slog.Warn("repair of the datastore will not be reported after a restart", "component", "datastore", "path", unreportedPath(path), "error", err)
	}
	return list
}

// reportRepair adds a repair to list, which it stores and returns, and logs it.
func reportRepair(path string, list []Repair, r Repair) []Repair {
	r.Time = time.Now().UTC()
	args := []any{"component", "datastore", "path", path, "what", r.What, "aside", r.Aside}
	if r.Lost == "" {
		slog.Warn("datastore repaired, nothing is lost", args...)
	} else {
		slog.Error("datastore repaired, data is lost", append(args, "lost", r.Lost)...)
	}
	return addUnreported(path, list, r)
}

// ForgetRepairs records that the repairs of the store at path have been reported: the next Open
// does not return them again.
func ForgetRepairs(path string) error {
	err := os.Remove(unreportedPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDirOf(path))
}
