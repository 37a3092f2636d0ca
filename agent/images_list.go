package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/usage"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
)

// Image describes one name in containerd's store.
type Image struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	// Size is the size of the blobs for this machine. Disk adds the unpacked layers to it. Both are
	// in bytes. Several images may share blobs and layers.
	Size   int64 `json:"size"`
	Disk   int64 `json:"disk"`
	Pinned bool  `json:"pinned"`
	// PinnedBy is "user", or the name of the file in the image directory. It is empty for images
	// that mote itself pins.
	PinnedBy string    `json:"pinnedBy,omitempty"`
	Since    time.Time `json:"since"`
}

// List returns the images that pods can use, sorted by name. It leaves out a name with a digest if
// a tag leads to the same image.
func (s *ImageStore) List(ctx context.Context) ([]Image, error) {
	stored, err := s.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	tagged := map[string]bool{} // digests of the images' configurations
	ids := make([]string, len(stored))
	for i, image := range stored {
		if ids[i] = s.idOf(ctx, image); !strings.Contains(image.Name, "@") && !isID(image.Name) {
			tagged[ids[i]] = true
		}
	}
	list := make([]Image, 0, len(stored))
	for i, image := range stored {
		if isID(image.Name) || strings.Contains(image.Name, "@") && tagged[ids[i]] {
			continue
		}
		one, err := s.describe(ctx, image)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// isID reports whether name is the second name that CRI gives to each image.
func isID(name string) bool { return strings.HasPrefix(name, "sha256:") }

// idOf returns the digest of the image's configuration, or "" if a blob is missing.
func (s *ImageStore) idOf(ctx context.Context, image images.Image) string {
	config, err := image.Config(ctx, s.client.ContentStore(), platforms.Default())
	if err != nil {
		return ""
	}
	return config.Digest.String()
}

func (s *ImageStore) describe(ctx context.Context, image images.Image) (Image, error) {
	one := Image{
		Name: image.Name, Digest: image.Target.Digest.String(), Since: image.CreatedAt,
		Pinned: image.Labels[pinLabel] == pinValue, PinnedBy: image.Labels[directoryPinLabel],
	}
	if one.PinnedBy == "" && image.Labels[userPinLabel] != "" && image.Name != PauseImage {
		one.PinnedBy = "user"
	}
	blobs := []usage.Opt{usage.WithManifestLimit(platforms.Default(), 1), usage.WithManifestUsage()}
	unpacked := append(slices.Clone(blobs), usage.WithSnapshotters(func(name string) snapshots.Snapshotter {
		return s.client.SnapshotService(name)
	}))
	for to, opts := range map[*int64][]usage.Opt{&one.Size: blobs, &one.Disk: unpacked} {
		size, err := usage.CalculateImageUsage(ctx, image, s.client.ContentStore(), opts...)
		if err != nil && !errdefs.IsNotFound(err) {
			return one, fmt.Errorf("measure image %s: %w", image.Name, err)
		}
		*to = size
	}
	return one, nil
}
