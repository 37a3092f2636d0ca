package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// followFiles follows two kinds of files. It uses one watch for both, as the kernel allows few:
//
//   - The host's resolver configuration changes when a network comes up late. followFiles then
//     writes the pods' resolver file again, which the kubelet reads for each pod.
//   - The CNI plugins remove a pod's address lease after the pod's rules. The connections of that
//     address are ended then (flushGone).
//
// stop ends both goroutines and waits for them.
func followFiles(ctx context.Context, c Config) (stop func(), err error) {
	if err := writeResolvConf(c); err != nil {
		return nil, err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the host's resolver configuration: %w", err)
	}
	for _, path := range resolvSources() {
		// This watches the directory, because the file is usually replaced. Only an installation
		// creates a directory that is missing now.
		if err := watcher.Add(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			slog.Warn("cannot follow the host's resolver configuration", "component", "kubelet", "file", path, "err", err)
		}
	}
	if c.CNI == CNIBridge {
		err := os.MkdirAll(c.leases(), 0o700)
		if err == nil {
			err = watcher.Add(c.leases())
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("watch the pods' addresses: %w", err), watcher.Close())
		}
	}
	gone, done, flushed := make(chan netip.Addr, maxGone), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(flushed)
		flushGone(gone, c.Budgets)
	}()
	go func() {
		defer close(done)
		defer close(gone)
		f := follower{c, gone}
		f.run(ctx, watcher)
	}()
	return func() { watcher.Close(); <-done; <-flushed }, nil
}

// follower handles the events of a watch.
type follower struct {
	Config
	gone chan<- netip.Addr
}

func (f *follower) run(ctx context.Context, watcher *fsnotify.Watcher) {
	for {
		select {
		case <-ctx.Done():
			return
		case event, open := <-watcher.Events:
			if !open {
				return
			}
			if filepath.Dir(event.Name) == f.leases() {
				f.lease(event)
				continue
			}
			if filepath.Base(event.Name) != "resolv.conf" {
				continue
			}
		case err, open := <-watcher.Errors:
			if !open {
				return
			}
			// Events were lost. The code below reads the resolver configuration again in any case.
			slog.Warn("cannot follow the host's resolver configuration", "component", "kubelet", "err", err)
		}
		if err := writeResolvConf(f.Config); err != nil {
			slog.Warn("cannot follow the host's resolver configuration", "component", "kubelet", "err", err)
		}
	}
}

// lease passes on the address of a removed lease. The name of the file is the address.
func (f *follower) lease(event fsnotify.Event) {
	address, err := netip.ParseAddr(filepath.Base(event.Name))
	if !event.Has(fsnotify.Remove) || err != nil {
		return
	}
	select {
	case f.gone <- address:
	default: // the channel is full: as many pods went at once as the network has addresses
	}
}
