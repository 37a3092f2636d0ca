// Package manifests keeps what a directory's files say in the cluster: what is dropped there is applied, what is
// edited updated, what is removed pruned, and what somebody deletes from the cluster made again.
//
// It owns one ConfigMap in kube-system for each file, which says what the file has made (set.go), and holds the events
// about it. Files are understood by files.go, parse.go and chart.go; cluster.go applies and removes single objects;
// pass.go brings the cluster to what the directory says. README.md tells the rules.
//
// Enter with New and run the Keeper as a component; Remove forgets the files but leaves their objects.
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

// A burst of changes, an editor's or a copy of many files, is over when none has come for settle. One that does not end
// is waited for as long as settleMax.
const (
	settle    = 200 * time.Millisecond
	settleMax = 5 * time.Second
)

// Config says which directory is kept. It is never changed after New.
type Config struct {
	Access api.Access
	// Dir is the directory. It is made if it is not there when the addon starts.
	Dir string
	// NodeName tells apart the directories of several servers.
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

	// Of Run's goroutine only.
	sets    map[string]*set   // by file
	states  map[string]*state // by file
	deleted *watches
	full    bool // the directory has had a file since it was found: when it is empty now, somebody emptied it

	mu      sync.Mutex        // guards trouble
	trouble map[string]string // what is wrong, by file; "" is the directory
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

// Ready implements component.Component: all files have been looked at.
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
		return nil // ctx has ended: Retry knows no other reason
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

// wait returns when there is something to do.
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
			// Events were lost, of which there were too many: all files are looked at anyway.
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

// drain takes what else happens until there is a quiet moment.
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

// Trouble says what is wrong with which file.
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

// note keeps what Trouble says of a file; "" is nothing. It tells whether that is new.
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
