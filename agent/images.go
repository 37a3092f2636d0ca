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
	// settleTime is how long an archive in ImagesDir must rest before it is read: it may still be
	// being copied there.
	settleTime = 2 * time.Second
	// sweepPoll is how often the end of an import is waited for, to remove what it left if it was killed.
	sweepPoll = time.Second
	// importPatience is how long pods wait at a start for new archives. A node that is silent for longer counts as lost.
	importPatience = 30 * time.Second
)

// imagesPart is the component "images". It implements component.Troubled: which archives are not imported, and which
// registries do not answer.
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

// serve imports the pause image and the archives in ImagesDir, is ready then, and imports what is dropped there
// later. So a pod finds its image and need not try again, unless the archives take longer than importPatience; they
// go on then. A bad archive is reported and left alone.
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

// startWithin calls ready after patience, unless the archives are imported before, and says in the log and in `mote
// status` that they are not, until imported is called.
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

// prepare sets what imports need, removes what interrupted ones left, and imports the pause image.
func (p *imagesPart) prepare(ctx context.Context, store *ImageStore) error {
	if usesNative(p.cfg) {
		// What clients unpack to when they name no snapshotter, as ours and ctr do not.
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

// follow imports what is dropped into the directory and sweeps after imports that were killed, until ctx ends.
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
