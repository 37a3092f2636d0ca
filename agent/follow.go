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

// followFiles keeps up with two directories, by one watch, as the kernel has few of them:
//
//   - The host's resolver configuration changes when a network comes up late. The pods' resolver file, which the kubelet reads
//     for each pod, is written again.
//   - The CNI plugins remove a pod's address lease when the pod's rules are gone. What the kernel still translates to that
//     address is forgotten then, and connections from it are ended (flushGone).
//
// stop waits for the end.
func followFiles(ctx context.Context, c Config) (stop func(), err error) {
	if err := writeResolvConf(c); err != nil {
		return nil, err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the host's resolver configuration: %w", err)
	}
	for _, path := range resolvSources() {
		// The directory, because the file is usually replaced; a missing one is never made later
		// by anything but an installation.
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

// follower acts on what a watch says.
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
			// Events were lost: what they would have told is looked up below.
			slog.Warn("cannot follow the host's resolver configuration", "component", "kubelet", "err", err)
		}
		if err := writeResolvConf(f.Config); err != nil {
			slog.Warn("cannot follow the host's resolver configuration", "component", "kubelet", "err", err)
		}
	}
}

// lease passes on the address of a lease that was removed. The file's name is the address.
func (f *follower) lease(event fsnotify.Event) {
	address, err := netip.ParseAddr(filepath.Base(event.Name))
	if !event.Has(fsnotify.Remove) || err != nil {
		return
	}
	select {
	case f.gone <- address:
	default: // as many pods at once as the network has addresses
	}
}
