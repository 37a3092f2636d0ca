package agent

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/fsnotify/fsnotify"
	"github.com/klauspost/compress/zstd"
)

const (
	imageNamespace = "k8s.io" // containerd's namespace of what CRI uses
	// pinLabel keeps the kubelet's garbage collection off an image; CRI reports it as Pinned.
	pinLabel, pinValue = "io.cri-containerd.pinned", "pinned"
	// settleTime is how long an archive in ImagesDir must rest before it is read: it may still be
	// being copied there.
	settleTime = 2 * time.Second
)

// Image is one name in containerd's store.
type Image struct {
	Name   string    `json:"name"`
	Digest string    `json:"digest"`
	Size   int64     `json:"size"` // bytes of all its blobs
	Pinned bool      `json:"pinned"`
	Since  time.Time `json:"since"`
}

// dial opens containerd's own API and does not wait for it to answer.
func dial(socket string) (*containerd.Client, error) {
	client, err := containerd.New(socket, containerd.WithDefaultNamespace(imageNamespace))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	return client, nil
}

// ListImages lists the images that pods can use, by name.
func ListImages(ctx context.Context, socket string) ([]Image, error) {
	client, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	stored, err := client.ListImages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	images := make([]Image, 0, len(stored))
	for _, image := range stored {
		if strings.HasPrefix(image.Name(), "sha256:") {
			continue // CRI's own second name for each image
		}
		size, err := image.Size(ctx)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("measure image %s: %w", image.Name(), err)
		}
		images = append(images, Image{
			Name: image.Name(), Digest: image.Target().Digest.String(), Size: size,
			Pinned: image.Labels()[pinLabel] == pinValue, Since: image.Metadata().CreatedAt,
		})
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return images, nil
}

// ImportImages reads an archive (docker save or OCI layout; plain, gzip or zstd) into containerd at
// socket, unpacks its images for this machine's platform and pins them. It returns their names.
func ImportImages(ctx context.Context, socket string, archive io.Reader) ([]string, error) {
	client, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return importArchive(ctx, client, archive)
}

func importArchive(ctx context.Context, client *containerd.Client, archive io.Reader) ([]string, error) {
	plain, err := decompress(archive)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	imported, err := client.Import(ctx, plain,
		containerd.WithImageLabels(map[string]string{pinLabel: pinValue}),
		containerd.WithImageRefTranslator(fullName),
		// An archive for several platforms often holds the blobs of one.
		containerd.WithSkipMissing(),
	)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	if len(imported) == 0 {
		return nil, errors.New("import images: the archive names no image; write it with `docker save NAME` and not by image id")
	}
	names := make([]string, 0, len(imported))
	for _, image := range imported {
		// Unpacking now spares the first pod the time.
		if err := containerd.NewImage(client, image).Unpack(ctx, ""); err != nil {
			return nil, fmt.Errorf("unpack image %s: %w", image.Name, err)
		}
		names = append(names, image.Name)
	}
	return names, nil
}

// fullName turns the short names that docker writes into what CRI looks for: busybox is
// docker.io/library/busybox:latest.
func fullName(name string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return named.String()
}

// decompress looks at the first bytes; file names do not count.
func decompress(archive io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReader(archive)
	magic, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		reader, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("read gzip archive: %w", err)
		}
		return reader, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		reader, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("read zstd archive: %w", err)
		}
		return reader.IOReadCloser(), nil
	}
	return io.NopCloser(buffered), nil
}

// importPatience is how long pods wait at a start for new archives. A node that is silent for longer counts as lost.
const importPatience = 30 * time.Second

// runImages imports the pause image and the archives in ImagesDir, is ready then, and imports what is dropped there
// later. So a pod finds its image and need not try again, unless the archives take longer than importPatience; they
// go on then. A bad archive is reported and left alone.
func runImages(ctx context.Context, c Config, ready func()) error {
	client, err := dial(ContainerdSocket(c))
	if err != nil {
		return err
	}
	defer client.Close()
	if usesNative(c) {
		// What clients unpack to when they name no snapshotter, as ours and ctr do not.
		const label = "containerd.io/defaults/snapshotter"
		if err := client.NamespaceService().SetLabel(ctx, imageNamespace, label, native); err != nil {
			return fmt.Errorf("set the default snapshotter: %w", err)
		}
	}
	if err := importPause(ctx, c, client); err != nil {
		return err
	}
	late := time.AfterFunc(importPatience, ready)
	defer late.Stop()
	if err := os.MkdirAll(c.ImagesDir, 0o755); err != nil {
		return fmt.Errorf("make the images directory: %w", err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", c.ImagesDir, err)
	}
	defer watcher.Close()
	if err := watcher.Add(c.ImagesDir); err != nil {
		return fmt.Errorf("watch %s: %w", c.ImagesDir, err)
	}
	importDirectory(ctx, c, client)
	ready()
	settled := time.NewTimer(settleTime)
	settled.Stop()
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-watcher.Events:
			if isArchive(event.Name) {
				settled.Reset(settleTime)
			}
		case err := <-watcher.Errors:
			slog.Warn("cannot watch the images directory", "component", "images", "err", err)
		case <-settled.C:
			importDirectory(ctx, c, client)
		}
	}
}

func importPause(ctx context.Context, c Config, client *containerd.Client) error {
	archive, manifest, err := pauseArchive(c)
	if err != nil {
		return err
	}
	image, err := client.GetImage(ctx, PauseImage)
	if err == nil && image.Target().Digest == manifest {
		if unpacked, err := image.IsUnpacked(ctx, ""); err == nil && unpacked {
			return nil
		}
	}
	if _, err := importArchive(ctx, client, bytes.NewReader(archive)); err != nil {
		return fmt.Errorf("import the pause image: %w", err)
	}
	return nil
}

func isArchive(path string) bool {
	name := filepath.Base(path)
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.zst"} {
		if strings.HasSuffix(name, suffix) && !strings.HasPrefix(name, ".") {
			return true
		}
	}
	return false
}

// importedArchive remembers an archive that is in containerd's store.
type importedArchive struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
	Images  []string  `json:"images"`
}

// importDirectory imports what is new or changed in ImagesDir.
func importDirectory(ctx context.Context, c Config, client *containerd.Client) {
	log := slog.With("component", "images")
	ledger := filepath.Join(c.agentDir(), "images.json")
	done := map[string]importedArchive{}
	if data, err := os.ReadFile(ledger); err == nil {
		if err := json.Unmarshal(data, &done); err != nil {
			log.Warn("the record of imported archives is damaged: importing all again", "file", ledger, "err", err)
		}
	}
	entries, err := os.ReadDir(c.ImagesDir)
	if err != nil {
		log.Error("cannot read the images directory", "err", err)
		return
	}
	for _, entry := range entries {
		path := filepath.Join(c.ImagesDir, entry.Name())
		info, err := os.Stat(path)
		if err != nil || info.IsDir() || !isArchive(path) {
			continue
		}
		last, known := done[entry.Name()]
		if known && last.Size == info.Size() && last.ModTime.Equal(info.ModTime()) && allPresent(ctx, client, last.Images) {
			continue
		}
		names, err := importFile(ctx, client, path)
		if err != nil {
			if ctx.Err() == nil {
				log.Error("cannot import an archive", "file", path, "err", err)
			}
			continue
		}
		log.Info("imported an archive", "file", path, "images", names)
		done[entry.Name()] = importedArchive{info.Size(), info.ModTime(), names}
		if data, err := json.MarshalIndent(done, "", "  "); err == nil {
			if err := writeFile(ledger, data, 0o600); err != nil {
				log.Error("cannot record an imported archive", "err", err)
			}
		}
	}
}

func importFile(ctx context.Context, client *containerd.Client, path string) ([]string, error) {
	archive, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	defer archive.Close()
	return importArchive(ctx, client, archive)
}

func allPresent(ctx context.Context, client *containerd.Client, names []string) bool {
	for _, name := range names {
		image, err := client.ImageService().Get(ctx, name)
		if err != nil || image.Labels[pinLabel] != pinValue {
			return false
		}
	}
	return true
}
