package manifests

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/mote-k8s/mote/addons/api"
)

// retryMin and retryMax limit the wait between attempts. A failed attempt may find a kind that is
// not known yet, or a namespace that is being deleted.
const (
	retryMin = 500 * time.Millisecond
	retryMax = time.Minute
	// busyRetry is the wait for a file that is being written: closing a file causes no event.
	busyRetry = time.Second
)

// state holds this process' information about a file.
type state struct {
	applied  string // the sum of the last version that was applied completely
	again    bool   // some of its objects have been deleted since
	failures int
	failed   string // the sum that failed
	retry    time.Time
	keep     map[key]schema.GroupVersionResource
}

// work is a file that has to be applied, with its progress.
type work struct {
	file
	set   *set
	state *state
	keep  map[key]schema.GroupVersionResource
	// unknown holds kinds that the cluster does not know.
	unknown map[schema.GroupKind]bool
	errs    []error
}

// pass makes the cluster match the directory as far as possible. It returns the wait before the
// next attempt, or 0 if no attempt is needed.
func (k *Keeper) pass(ctx context.Context, watcher *fsnotify.Watcher) time.Duration {
	for gone := range k.deleted.take() {
		for _, s := range k.states {
			if _, ok := s.keep[gone]; ok {
				s.again, s.retry = true, time.Time{}
			}
		}
	}
	t, err := k.read(watcher)
	if err != nil {
		k.full = false
		return retryMax
	}
	if k.freed(t.files) {
		for _, s := range k.states {
			s.retry = time.Time{} // for an object that was in two files and now is in one
		}
	}
	due, next, busy := k.due(t.files)
	if t.hidden != nil {
		next, busy = sooner(next, retryMax), true
	}
	k.apply(ctx, due, t.files)
	// Apply charts last, because their hooks take time.
	slices.SortStableFunc(due, func(a, b *work) int { return cmp.Compare(boolRank(a.chart != nil), boolRank(b.chart != nil)) })
	for _, w := range due {
		if ctx.Err() != nil {
			return 0
		}
		next = sooner(next, k.conclude(ctx, w, claimed(t.files, w.name), busy))
	}
	if !busy { // otherwise an object missing from one file may be on its way into another
		next = sooner(next, k.removeMissing(ctx, t.files))
	}
	all := make(map[key]schema.GroupVersionResource)
	for _, s := range k.states {
		maps.Copy(all, s.keep)
	}
	k.deleted.follow(all)
	return next
}

// freed reports whether a file that has created objects is gone.
func (k *Keeper) freed(files []file) bool {
	there := names(files)
	for name := range k.sets {
		if !there[name] {
			return true
		}
	}
	return false
}

func names(files []file) map[string]bool {
	there := make(map[string]bool)
	for _, f := range files {
		there[f.name] = true
	}
	return there
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// read reads the directory and watches all of its subdirectories.
func (k *Keeper) read(watcher *fsnotify.Watcher) (tree, error) {
	// Each directory is watched before it is read, so that no change is missed. A new directory is
	// read again.
	var t tree
	root, err := filepath.EvalSymlinks(k.cfg.Dir)
	if err == nil {
		err = watcher.Add(root)
	}
	for known := 0; err == nil; {
		if t, err = readTree(k.cfg.Dir); err != nil || len(t.dirs) == known {
			break
		}
		known = len(t.dirs)
		for _, dir := range t.dirs {
			err = errors.Join(err, watcher.Add(dir))
		}
	}
	if err == nil {
		k.doubt(&t)
	}
	what := ""
	switch {
	case err != nil:
		what = fmt.Sprintf("%v; nothing is changed meanwhile", err)
	case t.hidden != nil:
		what = fmt.Sprintf("%v; nothing is removed meanwhile", t.hidden)
	}
	if k.note("", what) && what != "" {
		slog.Warn("cannot read the directory", "component", Name, "dir", k.cfg.Dir, "err", what)
	}
	return t, err
}

// doubt rejects an empty directory in which no file has been seen so far. The directory may be new,
// or a file system may be mounted on it later.
func (k *Keeper) doubt(t *tree) {
	k.full = k.full || len(t.files) > 0
	if !k.full && t.hidden == nil && len(k.sets) > 0 {
		t.hidden = fmt.Errorf("it is empty, but %d files have been applied from it: bring them back, or a first other one", len(k.sets))
	}
}

// due returns the files that have to be applied. busy is true if another file is being written.
func (k *Keeper) due(files []file) (due []*work, next time.Duration, busy bool) {
	for _, f := range files {
		if errors.Is(f.err, errBusy) {
			next, busy = sooner(next, busyRetry), true
			continue
		}
		if f.skipped {
			k.note(f.name, "")
			if s := k.states[f.name]; s != nil {
				*s = state{} // its objects are not maintained
			}
			continue
		}
		if k.sets[f.name] == nil {
			k.sets[f.name] = newSet(k.cfg.NodeName, f.name)
		}
		if k.states[f.name] == nil {
			k.states[f.name] = &state{}
		}
		s := k.states[f.name]
		wait := time.Until(s.retry)
		switch {
		case f.err == nil && s.applied == f.sum && !s.again:
		case s.failures > 0 && s.failed == f.sum && (f.err == nil || f.again) && wait > 0:
			next = sooner(next, wait)
		case s.failures > 0 && s.failed == f.sum && f.err != nil && !f.again:
		default:
			due = append(due, &work{
				file: f, set: k.sets[f.name], state: s,
				keep: map[key]schema.GroupVersionResource{}, unknown: map[schema.GroupKind]bool{},
			})
		}
	}
	return due, next, busy
}

// sooner returns the shorter of two waits, where 0 means no wait.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// conclude removes the objects that a file no longer names, records the result, and reports it. It
// removes nothing while a file is being written.
func (k *Keeper) conclude(ctx context.Context, w *work, others claims, busy bool) time.Duration {
	s := w.set
	if len(w.errs) == 0 && w.chart != nil {
		if err := k.install(ctx, w); err != nil {
			w.errs = append(w.errs, err)
		}
	}
	var p pruned
	if len(w.errs) == 0 && !busy {
		for key := range w.keep {
			others.keys[key] = true
		}
		var err error
		if p, err = k.cluster.prune(ctx, s, others); err != nil {
			w.errs = append(w.errs, err)
		}
	}
	if ctx.Err() != nil {
		return 0 // the stop caused the failures
	}
	if len(w.errs) > 0 {
		return k.fail(ctx, w)
	}
	later := busy || len(p.left) > 0
	if !later {
		s.narrow(w.keep)
	}
	news := s.sum != w.sum || s.state != stateApplied
	s.sum, s.state, s.message = w.sum, stateApplied, ""
	*w.state = state{applied: w.sum, keep: w.keep, again: later}
	k.note(w.name, listing("not removed: ", p.left))
	if err := k.objs.Apply(ctx, s.parent(k.cfg.NodeName)); err != nil {
		w.errs = append(w.errs, err)
		return k.fail(ctx, w)
	}
	if news {
		slog.Info("applied", "component", Name, "file", w.name, "objects", len(w.keep), "removed", p.removed)
		k.events.Tell(s.ref(), "ManifestApplied", "%s is in force%s", w.name, listing("; removed: ", p.removed)+listing("; not removed: ", p.left))
	}
	return 0
}

func listing(title string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	return title + strings.Join(names, ", ")
}

// maxMessage limits the text of an event and a status for a file with many errors.
const maxMessage = 900

// fail records the problem of a file. The file is tried again after the returned wait, or when it
// changes.
func (k *Keeper) fail(ctx context.Context, w *work) time.Duration {
	text := strings.ReplaceAll(errors.Join(w.errs...).Error(), "\n", "; ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	s := w.state
	if s.failed != w.sum {
		s.failures = 0
	}
	s.failed, s.failures = w.sum, s.failures+1
	if s.keep == nil {
		s.keep = w.keep
	} else {
		maps.Copy(s.keep, w.keep)
		maps.DeleteFunc(s.keep, func(k key, _ schema.GroupVersionResource) bool { return w.unknown[k.GroupKind] })
	}
	s.again = true // regardless of an earlier success
	wait := min(retryMin<<min(s.failures-1, 10), retryMax)
	s.retry = time.Now().Add(wait)
	w.set.state, w.set.message = stateFailed, text
	// A kind whose definition was just applied is known at the next attempt.
	if early := s.failures == 1 && len(w.unknown) > 0; !early && k.note(w.name, text) {
		k.events.Warn(w.set.ref(), "ManifestNotApplied", w.name+": "+text)
	}
	if err := k.objs.Apply(ctx, w.set.parent(k.cfg.NodeName)); err != nil {
		slog.Warn("cannot write down how a file is", "component", Name, "file", w.name, "err", err)
		if errors.Is(err, api.ErrForeign) {
			return 0
		}
		return wait
	}
	if w.err != nil && !w.again {
		return 0 // the same file would fail in the same way
	}
	return wait
}

// removeMissing removes the objects of files that are gone.
func (k *Keeper) removeMissing(ctx context.Context, files []file) (next time.Duration) {
	there := names(files)
	for name, s := range k.sets {
		if there[name] {
			continue
		}
		if err := k.remove(ctx, s, files); err != nil {
			next = retryMax
			if k.note(name, err.Error()) && ctx.Err() == nil {
				k.events.Warn(s.ref(), "ManifestNotRemoved", name+": "+err.Error())
			}
			continue
		}
		k.note(name, "")
		delete(k.sets, name)
		delete(k.states, name)
	}
	return next
}

func (k *Keeper) remove(ctx context.Context, s *set, files []file) error {
	if s.release != "" {
		if err := k.uninstall(ctx, files, s.release, s.file); err != nil {
			return err
		}
	}
	p, err := k.cluster.prune(ctx, s, claimed(files, s.file))
	if err != nil {
		return err
	}
	if len(p.left) > 0 {
		return errors.New(listing("not removed: ", p.left))
	}
	if err := s.forget(ctx, k.kube); err != nil {
		return err
	}
	slog.Info("removed", "component", Name, "file", s.file, "objects", p.removed)
	return nil
}
