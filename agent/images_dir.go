package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mote-k8s/mote/internal/component"
)

// imageDirectory is the directory whose archives are imported. Their images are pinned for as long
// as the archives are there.
type imageDirectory struct {
	path, ledger string
	store        *ImageStore
	troubles     *component.Troubles
	failed       map[string]importedArchive // archives that cannot be imported, with their size and time
}

// importedArchive records an archive that is in containerd's store.
type importedArchive struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
	Images  []string  `json:"images"`
}

func (a importedArchive) same(info os.FileInfo) bool {
	return a.Size == info.Size() && a.ModTime.Equal(info.ModTime())
}

// unfinished reports whether path has a name that programs give to files that they have not
// finished. Every other file in the directory is treated as an archive, whatever its name.
func unfinished(path string) bool {
	name := filepath.Base(path)
	for _, suffix := range []string{".part", ".tmp", "~"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return strings.HasPrefix(name, ".")
}

// sync imports archives that are new or changed, and removes the pins of images whose archive is
// gone.
func (d *imageDirectory) sync(ctx context.Context) {
	log := slog.With("component", "images")
	done := d.readLedger(log)
	entries, err := os.ReadDir(d.path)
	if err != nil {
		log.Error("cannot read the images directory", "err", err)
		return
	}
	here := map[string]os.FileInfo{}
	for _, entry := range entries {
		info, err := os.Stat(filepath.Join(d.path, entry.Name()))
		if err == nil && !info.IsDir() && !unfinished(entry.Name()) {
			here[entry.Name()] = info
		}
	}
	// This comes first, because another archive may hold the same names: the loop below then
	// imports it again.
	for name, archive := range done {
		if here[name] == nil {
			d.release(ctx, log, name, archive.Images, nil)
			delete(done, name)
			d.writeLedger(log, done)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(here)) {
		last, info := done[name], here[name]
		if d.failed[name].same(info) || last.same(info) && d.store.allHeld(ctx, last.Images) {
			continue
		}
		names, err := d.importFile(ctx, name)
		if ctx.Err() != nil {
			return
		}
		if d.note(name, info, err); err != nil {
			log.Error("cannot import an archive", "file", filepath.Join(d.path, name), "err", err)
			continue
		}
		log.Info("imported an archive", "file", filepath.Join(d.path, name), "images", names)
		d.release(ctx, log, name, last.Images, names)
		done[name] = importedArchive{info.Size(), info.ModTime(), names}
		d.writeLedger(log, done)
	}
	d.troubles.Forget(func(about string) bool { return filepath.Dir(about) == d.path && here[filepath.Base(about)] == nil })
}

// note records whether the archive could be imported.
func (d *imageDirectory) note(name string, info os.FileInfo, err error) {
	what := ""
	delete(d.failed, name)
	if err != nil {
		what = err.Error()
		if d.failed == nil {
			d.failed = map[string]importedArchive{}
		}
		d.failed[name] = importedArchive{Size: info.Size(), ModTime: info.ModTime()}
	}
	d.troubles.Note(filepath.Join(d.path, name), what)
}

func (d *imageDirectory) importFile(ctx context.Context, name string) ([]string, error) {
	path := filepath.Join(d.path, name)
	if err := CheckArchive(path); err != nil {
		return nil, err
	}
	archive, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer archive.Close()
	return d.store.Import(ctx, archive, ImportOptions{Archive: name})
}

// release removes the archive's pin from the names that it had before and has no more.
func (d *imageDirectory) release(ctx context.Context, log *slog.Logger, archive string, had, has []string) {
	for _, name := range had {
		if slices.Contains(has, name) {
			continue
		}
		if err := d.store.releaseArchive(ctx, name, archive); err != nil {
			log.Warn("cannot unpin an image whose archive is gone", "image", name, "err", err)
			continue
		}
		log.Info("unpinned an image whose archive is gone", "image", name, "file", filepath.Join(d.path, archive))
	}
}

func (d *imageDirectory) readLedger(log *slog.Logger) map[string]importedArchive {
	done := map[string]importedArchive{}
	if data, err := os.ReadFile(d.ledger); err == nil {
		if err := json.Unmarshal(data, &done); err != nil {
			log.Warn("the record of imported archives is damaged: importing all again", "file", d.ledger, "err", err)
			return map[string]importedArchive{}
		}
	}
	return done
}

func (d *imageDirectory) writeLedger(log *slog.Logger, done map[string]importedArchive) {
	data, err := json.MarshalIndent(done, "", "  ")
	if err == nil {
		err = writeFile(d.ledger, data, 0o600)
	}
	if err != nil {
		log.Error("cannot record an imported archive", "err", err)
	}
}
