package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/mote-k8s/mote/internal/component"
)

const (
	// settleTime is the time for which an archive in ImagesDir must not change before it is read: a
	// program may still be copying it there.
	settleTime = 2 * time.Second
	// sweepPoll is the interval of attempts to sweep while an import is under way. The sweep
	// removes the leftovers of an import that was killed.
	sweepPoll = time.Second
	// importPatience is the time for which pods wait, at a start, for new archives. A node that is
	// silent for longer counts as lost.
	importPatience = 30 * time.Second
)

// imagesPart is the component "images". It implements component.Troubled: it reports archives that
// are not imported, and registries that do not answer.
type imagesPart struct {
	*part
	component.Troubles
	cfg Config
}

var _ component.Troubled = (*imagesPart)(nil)

func newImages(c Config) *imagesPart {
	p := &imagesPart{cfg: c}
	p.part = newPart("images", "the pause image and the archives are not imported", p.serve)
	return p
}

// serve imports the pause image and the archives in ImagesDir, calls ready, and then imports
// archives that are added later. So a pod finds its image and need not try again, unless the
// archives take longer than importPatience: then ready is called early and the import goes on. A
// bad archive is reported and stays where it is.
func (p *imagesPart) serve(ctx context.Context, ready func()) error {
	store, err := OpenImages(ContainerdSocket(p.cfg))
	if err != nil {
		return err
	}
	defer store.Close()
	if err := p.prepare(ctx, store); err != nil {
		return err
	}
	registries := newSilentRegistries(&p.Troubles)
	stop, err := servePulls(pullSocket(p.cfg), store, registries)
	if err != nil {
		return err
	}
	defer stop()
	var following sync.WaitGroup
	defer following.Wait()
	following.Go(func() { registries.follow(ctx, func(image string) bool { return store.has(ctx, image) }) })
	imported := p.startWithin(importPatience, ready)
	defer imported()
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", p.cfg.ImagesDir, err)
	}
	defer watcher.Close()
	for _, path := range []string{p.cfg.ImagesDir, store.lock} {
		if err := watcher.Add(path); err != nil {
			return fmt.Errorf("watch %s: %w", path, err)
		}
	}
	dir := &imageDirectory{path: p.cfg.ImagesDir, ledger: p.cfg.data().ImageLedger(), store: store, troubles: &p.Troubles}
	dir.sync(ctx)
	imported()
	ready()
	p.follow(ctx, watcher, dir)
	return nil
}

// startWithin calls ready after patience, unless imported is called before. When it calls ready, it
// also reports, in the log and in `mote status`, that archives are still being imported. The report
// in the status ends when imported is called.
func (p *imagesPart) startWithin(patience time.Duration, ready func()) (imported func()) {
	const what = "archives are still being imported; a pod whose image is not there yet waits for it"
	var mu sync.Mutex // guards done
	done := false
	late := time.AfterFunc(patience, func() {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return
		}
		p.Note(p.cfg.ImagesDir, what)
		slog.Warn(what, "component", p.Name(), "directory", p.cfg.ImagesDir)
		ready()
	})
	return func() {
		late.Stop()
		mu.Lock()
		defer mu.Unlock()
		done = true
		p.Note(p.cfg.ImagesDir, "")
	}
}

// prepare sets the labels that imports need, removes the leftovers of interrupted imports, and
// imports the pause image.
func (p *imagesPart) prepare(ctx context.Context, store *ImageStore) error {
	if usesNative(p.cfg) {
		// Clients that name no snapshotter, such as mote's and ctr, unpack to this one.
		const label = "containerd.io/defaults/snapshotter"
		if err := store.client.NamespaceService().SetLabel(ctx, imageNamespace, label, native); err != nil {
			return fmt.Errorf("set the default snapshotter: %w", err)
		}
	}
	keep, err := keepFree(p.cfg)
	if err != nil {
		return err
	}
	if err := keep.publish(ctx, store.client); err != nil {
		return err
	}
	if _, err := store.Sweep(ctx); err != nil {
		return err
	}
	if err := importPause(ctx, p.cfg, store); err != nil {
		return err
	}
	if err := os.MkdirAll(p.cfg.ImagesDir, 0o755); err != nil {
		return fmt.Errorf("make the images directory: %w", err)
	}
	return nil
}

// follow imports archives that are added to the directory, and sweeps after imports that were
// killed, until ctx ends.
func (p *imagesPart) follow(ctx context.Context, watcher *fsnotify.Watcher, dir *imageDirectory) {
	log := slog.With("component", p.Name())
	settled, sweep := time.NewTimer(settleTime), time.NewTimer(sweepPoll)
	settled.Stop()
	defer settled.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-watcher.Events:
			switch {
			case event.Name == dir.store.lock:
				sweep.Reset(sweepPoll)
			case !unfinished(event.Name):
				settled.Reset(settleTime)
			}
		case err := <-watcher.Errors:
			log.Warn("cannot watch the images directory", "err", err)
		case <-settled.C:
			dir.sync(ctx)
		case <-sweep.C:
			free, err := dir.store.Sweep(ctx)
			switch {
			case err != nil && ctx.Err() == nil:
				log.Warn("cannot remove what an interrupted import left", "err", err)
			case !free:
				sweep.Reset(sweepPoll)
			}
		}
	}
}

func importPause(ctx context.Context, c Config, store *ImageStore) error {
	archive, manifest, err := pauseArchive(c)
	if err != nil {
		return err
	}
	image, err := store.client.GetImage(ctx, PauseImage)
	if err == nil && image.Target().Digest == manifest {
		if unpacked, err := image.IsUnpacked(ctx, ""); err == nil && unpacked {
			return nil
		}
	}
	if _, err := store.Import(ctx, bytes.NewReader(archive), ImportOptions{Pin: true}); err != nil {
		return fmt.Errorf("import the pause image: %w", err)
	}
	return nil
}
