package networkpolicy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// attachment is a pod sandbox on the pod network. The CNI library records it when its plugins are
// done. That happens before the sandbox' first container starts, and long before the pod's status
// has the address.
type attachment struct {
	namespace, name, uid string
	addresses            []netip.Addr
}

// attachments watches the directory where the CNI library records its results.
type attachments struct {
	dir     string
	changed func()

	mu     sync.Mutex // guards byFile
	byFile map[string]attachment
}

// watchAttachments reads the existing files and watches the directory until ctx ends. stop ends the
// watch and waits for its end.
func watchAttachments(ctx context.Context, dir string, changed func()) (a *attachments, stop func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the directory of network attachments: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nil, fmt.Errorf("watch the pods' network attachments: %w", err)
	}
	if err := watcher.Add(dir); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("watch the pods' network attachments: %w", err), watcher.Close())
	}
	a = &attachments{dir: dir, changed: changed, byFile: make(map[string]attachment)}
	if err := a.scan(); err != nil {
		return nil, nil, errors.Join(err, watcher.Close())
	}
	done := make(chan struct{})
	go func() { defer close(done); a.follow(ctx, watcher) }()
	return a, func() { watcher.Close(); <-done }, nil
}

func (a *attachments) follow(ctx context.Context, watcher *fsnotify.Watcher) {
	for {
		select {
		case <-ctx.Done():
			return
		case event, ok := <-watcher.Events:
			if !ok {
				return
			}
			a.read(event.Name)
		case err, ok := <-watcher.Errors:
			if !ok {
				return
			}
			// There were too many events at once, so some are lost.
			slog.Warn("pods' network attachments are read again", "component", Name, "err", err)
			if err := a.scan(); err != nil {
				slog.Warn("cannot read the pods' network attachments", "component", Name, "err", err)
			}
		}
	}
}

func (a *attachments) scan() error {
	entries, err := os.ReadDir(a.dir)
	if err != nil {
		return fmt.Errorf("list network attachments: %w", err)
	}
	a.mu.Lock()
	clear(a.byFile)
	a.mu.Unlock()
	for _, entry := range entries {
		a.read(filepath.Join(a.dir, entry.Name()))
	}
	a.changed()
	return nil
}

// read updates the attachment of a file. A file that is half written counts as empty; another event
// follows.
func (a *attachments) read(file string) {
	found, err := readAttachment(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.byFile[file]
	if err != nil || len(found.addresses) == 0 {
		delete(a.byFile, file)
	} else {
		a.byFile[file] = found
	}
	if !slices.Equal(old.addresses, found.addresses) {
		a.changed()
	}
}

// readAttachment reads the format "cniCacheV1". The library exports no reader for its results.
func readAttachment(file string) (attachment, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return attachment{}, fmt.Errorf("read network attachment: %w", err)
	}
	var noted struct {
		CNIArgs [][2]string `json:"cniArgs"`
		Result  struct {
			IPs []struct {
				Address netip.Prefix `json:"address"`
			} `json:"ips"`
		} `json:"result"`
	}
	if err := json.Unmarshal(data, &noted); err != nil {
		return attachment{}, fmt.Errorf("read network attachment %s: %w", file, err)
	}
	var a attachment
	for _, arg := range noted.CNIArgs {
		switch arg[0] {
		case "K8S_POD_NAMESPACE":
			a.namespace = arg[1]
		case "K8S_POD_NAME":
			a.name = arg[1]
		case "K8S_POD_UID":
			a.uid = arg[1]
		}
	}
	for _, ip := range noted.Result.IPs {
		a.addresses = append(a.addresses, ip.Address.Addr())
	}
	return a, nil
}

// byPod returns the attachments by namespace/name, and the addresses in use.
func (a *attachments) byPod() (pods map[string][]attachment, taken map[netip.Addr]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pods, taken = make(map[string][]attachment), make(map[netip.Addr]bool)
	for _, found := range a.byFile {
		key := found.namespace + "/" + found.name
		pods[key] = append(pods[key], found)
		for _, address := range found.addresses {
			taken[address] = true
		}
	}
	return pods, taken
}
