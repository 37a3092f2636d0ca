package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mote-k8s/mote/datastore/bolt/rescue"
	"github.com/mote-k8s/mote/internal/durable"
	"github.com/mote-k8s/mote/internal/layout"
)

// planFile is the plan of a restore, in the datastore's directory.
const planFile = "restore.json"

// revisionGap is the distance between the snapshot's revision and the first of the restored store.
// It is more revisions than any machine could write between the snapshot and the restore, and more
// than a repair from the same snapshot has skipped there.
const revisionGap = 2 * rescue.RevisionGap

// Restored describes what a restore did.
type Restored struct {
	Manifest
	// Replaced are the directories with the previous data: none if there was no data, two if it was
	// on two file systems.
	Replaced []string
}

// plan lists the steps that remain once everything is staged. The file exists from the first change
// to the last.
//
//	(no plan) -- stage --> staged -- write plan --> planned
//	planned -- swap each item --> swapped -- remove plan --> (no plan)
//
// Before the plan exists, nothing has changed, and the next caller removes the stage. Once it
// exists, the next caller continues: an item that is still staged has not been put in place.
type plan struct {
	Manifest Manifest `json:"manifest"`
	// Replaced is the name of the directory for the previous data. It is beside the plan or, for
	// data on another file system, in the data directory.
	Replaced string `json:"replaced"`
}

// items returns what a restore puts in place, by paths below the data directory. Each item is
// staged beside its destination: the store may be on a disk of its own, and a rename cannot move a
// file to another file system.
func items() []string {
	below := layout.Data("")
	return []string{below.Server(), below.State(), below.StateLog(0), below.StateLog(1)}
}

// restoring is a restore into one data directory.
type restoring struct {
	dataDir string
	// before is called before each change of the disk; tests end the process there.
	before func(what string)
}

// Restore replaces the data in dataDir with the snapshot at path. The caller must hold the lock of
// dataDir. keys open an encrypted snapshot. An interrupted restore is finished first.
func Restore(ctx context.Context, path, dataDir string, keys Keys, progress Progress) (Restored, error) {
	return newRestoring(dataDir).restore(ctx, path, keys, progress)
}

// Resume finishes a restore that was interrupted in dataDir, and reports whether there was one. The
// caller must hold the lock of dataDir.
func Resume(dataDir string) (Restored, bool, error) { return newRestoring(dataDir).resume() }

func newRestoring(dataDir string) *restoring {
	return &restoring{dataDir: dataDir, before: func(string) {}}
}

func (r *restoring) restore(ctx context.Context, path string, keys Keys, progress Progress) (Restored, error) {
	if _, _, err := r.resume(); err != nil {
		return Restored{}, err
	}
	p, err := r.stage(ctx, path, keys, progress)
	if err != nil {
		// Nothing has changed yet. If this removal fails, the next caller removes the stage.
		_ = r.removeStages()
		return Restored{}, fmt.Errorf("restore %s: %w", path, err)
	}
	if err := r.write(p); err != nil {
		return Restored{}, fmt.Errorf("restore %s: %w", path, err)
	}
	return r.swap(p)
}

func (r *restoring) resume() (Restored, bool, error) {
	data, err := os.ReadFile(r.path(planFile))
	if errors.Is(err, fs.ErrNotExist) {
		if err := r.removeStages(); err != nil && !errors.Is(err, syscall.EROFS) {
			return Restored{}, false, fmt.Errorf("remove what an interrupted restore left: %w", err)
		}
		return Restored{}, false, nil
	}
	if err != nil {
		return Restored{}, false, fmt.Errorf("read the plan of an interrupted restore: %w", err)
	}
	var p plan
	if err := json.Unmarshal(data, &p); err != nil || !strings.HasPrefix(p.Replaced, layout.ReplacedPrefix) || !filepath.IsLocal(p.Replaced) {
		return Restored{}, false, fmt.Errorf("%s is not the plan of a restore (%v); move it away if you know what it is, and restore again", r.path(planFile), err)
	}
	done, err := r.swap(p)
	return done, true, err
}

// stage unpacks the snapshot beside the data that it will replace, and prepares the store for a
// start.
func (r *restoring) stage(ctx context.Context, path string, keys Keys, progress Progress) (plan, error) {
	s, err := openFile(path, keys)
	if err != nil {
		return plan{}, err
	}
	defer s.Close()
	for _, stage := range r.stages() {
		if err := os.MkdirAll(stage, 0o700); err != nil {
			return plan{}, err
		}
	}
	if err := checkRoom(r.path(layout.Stage), s.size()+spare); err != nil {
		return plan{}, err
	}
	r.before("unpack")
	err = s.each(ctx, progress, func(p Part, contents io.Reader) error {
		target := r.staged(p.Name)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		// Others get at most the read access that the control plane grants them; nobody except the
		// owner may write.
		return copyTo(target, p.Mode.Perm()&0o644, contents, true)
	})
	if err != nil {
		return plan{}, err
	}
	store := r.staged(storePart)
	if _, err := rescue.Inspect(store); err != nil {
		return plan{}, fmt.Errorf("its store is not sound: %w; restore another snapshot", err)
	}
	floor, err := r.floor(s.Manifest, filepath.Dir(path))
	if err != nil {
		return plan{}, err
	}
	r.before("adopt")
	if err := rescue.Adopt(store, floor); err != nil {
		return plan{}, err
	}
	replaced, err := r.replacedName(time.Now())
	if err != nil {
		return plan{}, err
	}
	r.before("sync")
	for _, stage := range r.stages() {
		err = errors.Join(err, syncTree(stage), durable.SyncDir(filepath.Dir(stage)))
	}
	return plan{Manifest: s.Manifest, Replaced: replaced}, err
}

// staged returns the path of an item, or of a file below one, before it is put in place.
func (r *restoring) staged(item string) string {
	if below, ok := strings.CutPrefix(item, layout.Data("").Datastore()+"/"); ok {
		return filepath.Join(r.path(layout.Stage), filepath.FromSlash(below))
	}
	return filepath.Join(r.dataDir, layout.Stage, filepath.FromSlash(item))
}

func (r *restoring) stages() []string {
	return []string{r.path(layout.Stage), filepath.Join(r.dataDir, layout.Stage)}
}

func (r *restoring) removeStages() error {
	var err error
	for _, stage := range r.stages() {
		err = errors.Join(err, os.RemoveAll(stage))
	}
	return err
}

// floor returns a revision that the restored store must begin above. It is above all revisions that
// the current store may have given out, and all that the snapshot's own store may have given out
// since the snapshot. Other snapshots add the revisions of stores that cannot be read any more.
func (r *restoring) floor(m Manifest, folder string) (int64, error) {
	highest := m.Revision
	for _, f := range []Folder{Folder(folder), Folder(layout.Data(r.dataDir).Snapshots())} {
		list, err := f.List()
		if err != nil {
			return 0, err
		}
		for _, s := range list {
			highest = max(highest, s.Revision)
		}
	}
	if now, err := rescue.Peek(layout.Data(r.dataDir).State()); err == nil {
		// The revisions in the log are not in the file yet. They are far fewer than the gap.
		highest = max(highest, now.Revision, now.Ceiling)
	}
	return highest + revisionGap, nil
}

// replacedName returns a name that is not in use: a clock that was set back must not mix up two
// restores.
func (r *restoring) replacedName(now time.Time) (string, error) {
	name := layout.ReplacedPrefix + now.UTC().Format("20060102T150405Z")
	for i := 1; ; i++ {
		candidate := name
		if i > 1 {
			candidate = fmt.Sprintf("%s-%d", name, i)
		}
		taken := false
		for _, folder := range []string{r.path(candidate), filepath.Join(r.dataDir, candidate)} {
			_, err := os.Lstat(folder)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
			taken = taken || err == nil
		}
		if !taken {
			return candidate, nil
		}
	}
}

// write creates the plan: from here on only another restore can undo this one.
func (r *restoring) write(p plan) error {
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	draft := filepath.Join(r.path(layout.Stage), planFile)
	r.before("write plan")
	if err := copyTo(draft, 0o600, strings.NewReader(string(data)), true); err != nil {
		return err
	}
	r.before("place plan")
	if err := os.Rename(draft, r.path(planFile)); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(r.path("")), durable.SyncDir(r.dataDir))
}

// swap puts the staged items in place and sets the previous ones aside. Each step can be repeated.
func (r *restoring) swap(p plan) (Restored, error) {
	done := Restored{Manifest: p.Manifest}
	for _, item := range items() {
		if err := r.swapItem(p, item); err != nil {
			return done, fmt.Errorf("put %s of a snapshot in place: %w; the next start, or the same command again, goes on", item, err)
		}
	}
	for _, folder := range []string{r.path(p.Replaced), filepath.Join(r.dataDir, p.Replaced)} {
		if _, err := os.Stat(folder); err == nil {
			done.Replaced = append(done.Replaced, folder)
		}
	}
	r.before("remove plan")
	if err := errors.Join(os.Remove(r.path(planFile)), durable.SyncDir(r.path(""))); err != nil {
		return done, fmt.Errorf("remove the plan of a restore: %w", err)
	}
	r.before("remove stage")
	if err := r.removeStages(); err != nil {
		return done, fmt.Errorf("remove what a restore left: %w", err)
	}
	return done, nil
}

func (r *restoring) swapItem(p plan, item string) error {
	staged, live := r.staged(item), filepath.Join(r.dataDir, item)
	if _, err := os.Lstat(staged); errors.Is(err, fs.ErrNotExist) {
		return nil // it is in place already, or not in the snapshot
	}
	if _, err := os.Lstat(live); err == nil {
		r.before("set aside " + item)
		err := setAside(live, r.path(p.Replaced))
		if errors.Is(err, syscall.EXDEV) {
			err = setAside(live, filepath.Join(r.dataDir, p.Replaced))
		}
		if err != nil {
			return err
		}
	}
	r.before("place " + item)
	if err := os.Rename(staged, live); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Dir(live)), durable.SyncDir(filepath.Dir(staged)))
}

// setAside moves a file into a directory, which it creates. The file must be durable there before
// the caller reuses its old name.
func setAside(path, folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(folder, filepath.Base(path))); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(folder), durable.SyncDir(filepath.Dir(folder)), durable.SyncDir(filepath.Dir(path)))
}

// path returns a path in the datastore's directory.
func (r *restoring) path(name string) string {
	return filepath.Join(layout.Data(r.dataDir).Datastore(), name)
}

// syncTree makes all directories below dir durable. Their files are durable already.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return durable.SyncDir(path)
	})
}
