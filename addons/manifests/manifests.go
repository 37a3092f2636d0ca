// Package manifests keeps the cluster equal to the manifests in a directory. It applies files that
// are added, updates objects when files change, removes the objects of removed files, and creates
// objects again that were deleted from the cluster.
//
// It owns one ConfigMap in kube-system for each file. The ConfigMap records the objects that the
// file has created (set.go), and events on the file refer to it. files.go, parse.go and chart.go
// read the files. cluster.go applies and removes single objects. pass.go makes the cluster match
// the directory. README.md describes the rules.
//
// Enter with New and run the Keeper as a component; Remove deletes the ConfigMaps and keeps the
// objects of the files.
package manifests

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/client-go/kubernetes"

	"github.com/mote-k8s/mote/addons/api"
)

// Name is the addon's name in settings, status and logs.
const Name = "manifests"

// settle is the time without a change after which a burst of changes is over, e.g. from an editor
// or a copy of many files. settleMax limits the wait for a burst that does not end.
const (
	settle    = 200 * time.Millisecond
	settleMax = 5 * time.Second
)

// Config defines the directory. It never changes after New.
type Config struct {
	Access api.Access
	// Dir is the directory. The addon creates it at its start if it does not exist.
	Dir string
	// NodeName distinguishes the directories of several servers.
	NodeName string
}

// Keeper is the addon. It implements component.Component.
type Keeper struct {
	cfg     Config
	kube    kubernetes.Interface
	objs    *api.Objects
	cluster *cluster
	events  *api.Events
	charts  *charts
	ready   chan struct{}

	// The next fields are used by Run's goroutine only.
	sets    map[string]*set   // by file
	states  map[string]*state // by file
	deleted *watches
	// full is true once the directory has had a file since it was found. If it is empty now, a user
	// has emptied it.
	full bool

	mu      sync.Mutex        // guards trouble
	trouble map[string]string // the problem of each file; "" is the directory
}

// New makes the keeper.
func New(cfg Config) (*Keeper, error) {
	k := &Keeper{cfg: cfg, ready: make(chan struct{}), states: map[string]*state{}, trouble: map[string]string{}}
	admin := cfg.Access.Admin(Name)
	var err error
	if k.kube, err = kubernetes.NewForConfig(admin); err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	if k.objs, err = api.NewObjects(admin, Name); err != nil {
		return nil, err
	}
	if k.cluster, err = newCluster(admin); err != nil {
		return nil, err
	}
	k.charts = newCharts(admin, k.cluster.mapper)
	return k, nil
}

// Name implements component.Component.
func (*Keeper) Name() string { return Name }

// Ready implements component.Component. The addon is ready when all files have been read once.
func (k *Keeper) Ready(ctx context.Context) error {
	select {
	case <-k.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the manifests in %s are not applied yet", k.cfg.Dir)
	}
}

// Run implements component.Component.
func (k *Keeper) Run(ctx context.Context) error {
	if err := os.MkdirAll(k.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make the manifests' directory: %w; set another --manifests-dir, or --disable=%s", err, Name)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the manifests' directory: %w", err)
	}
	defer watcher.Close()
	k.events = api.NewEvents(k.kube, Name)
	defer k.events.Close()
	k.deleted = newWatches(ctx, k.cluster.meta)
	defer k.deleted.stop()
	err = api.Retry(ctx, Name, func(ctx context.Context) (err error) {
		k.sets, err = loadSets(ctx, k.kube, k.cfg.NodeName)
		return err
	})
	if err != nil {
		return nil // ctx has ended, the only error that Retry returns
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for first := true; ctx.Err() == nil; first = false {
		next := k.pass(ctx, watcher)
		if first {
			close(k.ready)
		}
		retry.Stop()
		if next > 0 {
			retry.Reset(next)
		}
		if err := k.wait(ctx, watcher, retry.C); err != nil {
			return err
		}
	}
	return nil
}

// wait returns when there is work to do.
func (k *Keeper) wait(ctx context.Context, watcher *fsnotify.Watcher, retry <-chan time.Time) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry:
			return nil
		case <-k.deleted.wake:
			return nil
		case err, ok := <-watcher.Errors:
			if !ok {
				return errors.New("the watch of the manifests' directory ended")
			}
			// There were too many events and some were lost. The next pass reads all files anyway.
			slog.Warn("the watch of the directory has a gap", "component", Name, "err", err)
			return nil
		case event, ok := <-watcher.Events:
			if !ok {
				return errors.New("the watch of the manifests' directory ended")
			}
			if event.Op != fsnotify.Chmod {
				return k.drain(ctx, watcher)
			}
		}
	}
}

// drain receives further events until there is a quiet moment.
func (k *Keeper) drain(ctx context.Context, watcher *fsnotify.Watcher) error {
	settled, enough := time.NewTimer(settle), time.NewTimer(settleMax)
	defer settled.Stop()
	defer enough.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-enough.C:
			return nil
		case <-settled.C:
			return nil
		case _, ok := <-watcher.Events:
			if !ok {
				return errors.New("the watch of the manifests' directory ended")
			}
			settled.Reset(settle)
		}
	}
}

// Trouble returns the problem of each file that has one.
func (k *Keeper) Trouble() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []string
	for file, what := range k.trouble {
		list = append(list, filepath.Join(k.cfg.Dir, file)+": "+what)
	}
	slices.Sort(list)
	return list
}

// note records the problem of a file for Trouble; "" means none. It reports whether the problem is
// new.
func (k *Keeper) note(file, what string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.trouble[file]
	if what == "" {
		delete(k.trouble, file)
	} else {
		k.trouble[file] = what
	}
	return was != what
}
