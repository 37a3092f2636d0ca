package manifests

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// apply writes the objects of all due files. Objects that others need come first.
func (k *Keeper) apply(ctx context.Context, due []*work, files []file) {
	type item struct {
		*work
		object *unstructured.Unstructured
	}
	var items []item
	for _, w := range due {
		if w.err != nil {
			w.errs = append(w.errs, w.err)
			continue
		}
		if err := k.begin(ctx, w, files); err != nil {
			w.errs = append(w.errs, err)
			continue
		}
		for _, object := range w.objects {
			items = append(items, item{w, object})
		}
	}
	slices.SortStableFunc(items, func(a, b item) int {
		return cmp.Compare(rank(a.object.GroupVersionKind().GroupKind()), rank(b.object.GroupVersionKind().GroupKind()))
	})
	owners := make(map[key]string)
	for _, f := range files {
		if s := k.states[f.name]; s != nil && !slices.ContainsFunc(due, func(w *work) bool { return w.name == f.name }) {
			for key := range s.keep {
				owners[key] = f.name
			}
		}
	}
	ids := make(map[string]bool)
	for _, s := range k.sets {
		ids[s.id] = true
	}
	reset := false
	for _, i := range items {
		if ctx.Err() != nil {
			return
		}
		name, resource, err := k.cluster.resolve(i.object)
		if meta.IsNoMatchError(err) && !reset {
			// Its kind may be new. Reset the mapper once for each pass; the backoff handles the
			// rest.
			reset = true
			k.cluster.mapper.Reset()
			name, resource, err = k.cluster.resolve(i.object)
		}
		if err != nil {
			if meta.IsNoMatchError(err) {
				i.unknown[identity(i.object).GroupKind] = true
			}
			i.errs = append(i.errs, explain(identity(i.object), err))
			continue
		}
		if owner, ok := owners[name]; ok {
			i.errs = append(i.errs, fmt.Errorf("%s: it is in %s too, which keeps it; remove it from one of them", name, owner))
			continue
		}
		owners[name] = i.name
		i.keep[name] = resource
		if i.set.sum == i.sum && fleeting(i.object) {
			continue
		}
		if err := k.cluster.apply(ctx, resource, i.object, i.set.id, func(id string) bool { return ids[id] }); err != nil {
			i.errs = append(i.errs, explain(name, err))
		}
	}
}

// identity returns the key of an object as its file states it.
func identity(u *unstructured.Unstructured) key {
	return key{u.GroupVersionKind().GroupKind(), u.GetNamespace(), u.GetName()}
}

// fleeting reports whether an object disappears by itself when it is done. If it were created
// again, it would run again.
func fleeting(u *unstructured.Unstructured) bool {
	_, found, err := unstructured.NestedFieldNoCopy(u.Object, "spec", "ttlSecondsAfterFinished")
	return u.GetKind() == "Job" && found && err == nil
}

// claims holds the objects that files name.
type claims struct {
	keys map[key]bool
	// doubtful are the files that cannot be parsed.
	doubtful []file
}

// claimed returns the objects that files other than one name.
func claimed(files []file, but string) claims {
	c := claims{keys: make(map[key]bool)}
	for _, f := range files {
		if f.name == but {
			continue
		}
		if f.err != nil {
			c.doubtful = append(c.doubtful, f)
		}
		for _, u := range f.objects {
			k := identity(u)
			c.keys[k] = true
			if k.namespace == "" { // if the kind has namespaces, this is the object's
				k.namespace = metav1.NamespaceDefault
				c.keys[k] = true
			}
		}
	}
	return c
}

// doubt returns the file that may name an object although it cannot be parsed: its text contains
// the object's name, or cannot be read at all. It returns "" if there is none.
func (c claims) doubt(k key) string {
	for _, f := range c.doubtful {
		if f.text == nil || bytes.Contains(f.text, []byte(k.name)) {
			return f.name
		}
	}
	return ""
}

// owner returns the file, other than one, that owns a release, or "" if there is none. If several
// files name the release, the one that already has it is the owner. A file that cannot be read
// keeps its release.
func (k *Keeper) owner(files []file, release, but string) string {
	owner, owned := "", false
	for _, f := range files {
		s := k.sets[f.name]
		had := s != nil && s.release == release
		names := f.chart != nil && f.chart.release() == release || had && (f.err != nil || f.skipped)
		if f.name != but && names && (owner == "" || had && !owned) {
			owner, owned = f.name, had
		}
	}
	return owner
}

// stopTimeout limits the single write of a Keeper that is being stopped. The apiserver stops after
// it.
const stopTimeout = 2 * time.Second

// install installs a file's release, unless that has ended the process again and again.
func (k *Keeper) install(ctx context.Context, w *work) error {
	s := w.set
	if s.returned != w.sum {
		if !s.try(w.sum) {
			return fmt.Errorf("release %s: mote has ended %d times while it installed this chart, and leaves it alone until it or its file changes; see the log of then",
				w.chart.release(), s.tries)
		}
		if err := k.objs.Apply(ctx, s.parent(k.cfg.NodeName)); err != nil {
			s.tries-- // it has not begun
			k.stopped(ctx, s)
			return err
		}
	}
	err := k.charts.install(ctx, w.chart, s.sum == w.sum)
	s.tries, s.returned = 0, w.sum
	k.stopped(ctx, s)
	return err
}

// stopped records a set if the Keeper is being stopped. conclude does not record it in that case,
// and a stop does not count as an end of the process during an installation.
func (k *Keeper) stopped(ctx context.Context, s *set) {
	if ctx.Err() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := k.objs.Apply(ctx, s.parent(k.cfg.NodeName)); err != nil {
		slog.Warn("cannot write down how a file is", "component", Name, "file", s.file, "err", err)
	}
}

// uninstall removes a release that a file had, if no other file has it now.
func (k *Keeper) uninstall(ctx context.Context, files []file, release, file string) error {
	if owner := k.owner(files, release, file); owner != "" {
		slog.Info("a release has moved", "component", Name, "release", release, "from", file, "to", owner)
		return nil
	}
	for _, f := range files {
		if f.name != file && f.err != nil && strings.HasSuffix(f.name, chartSuffix) {
			return fmt.Errorf("release %s is left: %s may be about it, and cannot be read", release, f.name)
		}
	}
	return k.charts.uninstall(ctx, release)
}

// begin records the objects that a file is about to create.
func (k *Keeper) begin(ctx context.Context, w *work, files []file) error {
	s := w.set
	if w.chart != nil {
		if owner := k.owner(files, w.chart.release(), ""); owner != w.name {
			return fmt.Errorf("release %s: it is in %s too, which keeps it; remove it from one of them", w.chart.release(), owner)
		}
	}
	for _, u := range w.objects {
		s.kinds[u.GroupVersionKind().GroupKind()] = true
		if ns := u.GetNamespace(); ns != "" && ns != namespace {
			s.namespaces[ns] = true
		}
	}
	if w.chart != nil {
		// If the release has another name now, the old one is uninstalled.
		if s.release != "" && s.release != w.chart.release() {
			if err := k.uninstall(ctx, files, s.release, w.name); err != nil {
				return err
			}
		}
		s.release = w.chart.release()
	}
	if s.sum != w.sum && w.state.failed != w.sum { // on a new attempt it is still failed
		s.state, s.message = stateApplying, ""
	}
	return k.objs.Apply(ctx, s.parent(k.cfg.NodeName))
}
