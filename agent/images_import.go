package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cleanTimeout bounds the cleaning after an interrupted import. Deleting a lease collects garbage:
// at worst layers of some GiB.
const cleanTimeout = time.Minute

// ImportOptions selects additional effects of an import.
type ImportOptions struct {
	// Pin protects the images from the kubelet's garbage collection and from Prune.
	Pin bool
	// Archive is the name of the file in the image directory that holds the images, or "" for an
	// archive from elsewhere. The file pins the images too.
	Archive string
}

// labels returns the labels of the names that an import sets.
func (o ImportOptions) labels() map[string]string {
	labels := map[string]string{}
	if o.Pin {
		labels[pinLabel], labels[userPinLabel] = pinValue, "yes"
	}
	if o.Archive != "" {
		labels[pinLabel], labels[directoryPinLabel] = pinValue, o.Archive
	}
	return labels
}

// Import reads an archive (docker save or OCI layout; plain, gzip or zstd), unpacks its images for
// this machine's platform and returns their names. Pods find them by name and by digest. An import
// that fails leaves nothing behind, and a name that existed before stays as it was.
//
// Everything that is written belongs to a lease of containerd. When the lease ends, the garbage
// collector removes the content that no name leads to. Names are written last.
func (s *ImageStore) Import(ctx context.Context, from io.Reader, o ImportOptions) (names []string, err error) {
	plain, err := decompress(from)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	keep, err := publishedSpace(ctx, s.client, s.socket)
	if err != nil {
		return nil, err
	}
	unlock, err := s.lockImport(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	ctx, release, err := s.lease(ctx)
	if err != nil {
		return nil, err
	}
	watched, stop := keep.watch(ctx)
	found, err := s.ingest(watched, plain)
	if cause := context.Cause(watched); err != nil && cause != nil {
		err = cause
	}
	stop()
	if err == nil {
		names, err = s.setNames(ctx, found, o)
	}
	if err = errors.Join(err, release(err != nil)); err != nil {
		return nil, err
	}
	s.awaitCRI(ctx, found)
	return names, nil
}

// lease returns a context for writing to containerd. After release, everything written with it is
// garbage, except the content that a name leads to. After a failure release waits until the garbage
// is gone.
func (s *ImageStore) lease(ctx context.Context) (leased context.Context, release func(failed bool) error, err error) {
	service := s.client.LeasesService()
	lease, err := service.Create(ctx, leases.WithRandomID(), leases.WithExpiration(importExpiry), leases.WithLabel(importLease, "yes"))
	if err != nil {
		return nil, nil, fmt.Errorf("create a lease for the import: %w", err)
	}
	return leases.WithLease(ctx, lease.ID), func(failed bool) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
		defer cancel()
		var opts []leases.DeleteOpt
		if failed {
			opts = append(opts, leases.SynchronousDelete)
		}
		if err := service.Delete(ctx, lease, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete the lease of the import: %w", err)
		}
		return nil
	}, nil
}

// ingest writes the archive's blobs to the content store, finds the images in it and unpacks them.
func (s *ImageStore) ingest(ctx context.Context, plain io.Reader) ([]foundImage, error) {
	store := s.client.ContentStore()
	index, err := archive.ImportIndex(ctx, store, plain)
	if err != nil {
		return nil, explainArchive(err)
	}
	found, err := findImages(ctx, store, index)
	if err != nil {
		return nil, err
	}
	for _, image := range found {
		// Unpacking now saves the first pod that time.
		unpacked := containerd.NewImage(s.client, images.Image{Name: image.names[0], Target: image.target})
		if err := unpacked.Unpack(ctx, ""); err != nil {
			return nil, fmt.Errorf("unpack image %s: %w", image.names[0], err)
		}
	}
	return found, nil
}

// explainArchive recognises containerd's error for a file that is no archive.
func explainArchive(err error) error {
	if err.Error() == "unrecognized image format" {
		return fmt.Errorf("%w: it has neither manifest.json nor oci-layout, or is cut short", errNotArchive)
	}
	return cutShort(err)
}

// foundImage is an image in an archive.
type foundImage struct {
	names    []string           // tags, or names with a digest
	target   ocispec.Descriptor // an index or a manifest
	manifest ocispec.Descriptor // the manifest for this machine: target itself, or below it
	config   ocispec.Descriptor
}

// findImages returns the named images below index that run on this machine. It also sets the labels
// by which containerd's garbage collector finds their blobs. An archive for several platforms often
// holds only the blobs of one.
func findImages(ctx context.Context, store content.Store, index ocispec.Descriptor) ([]foundImage, error) {
	data, err := content.ReadBlob(ctx, store, index)
	if err != nil {
		return nil, fmt.Errorf("read the archive's index: %w", err)
	}
	var entries ocispec.Index
	if err := json.Unmarshal(data, &entries); err != nil {
		return nil, fmt.Errorf("read the archive's index: %w", err)
	}
	var found []foundImage
	foreign := map[string]string{} // names of images for other platforms
	for _, entry := range entries.Manifests {
		name := nameOf(entry)
		if name == "" || entry.Annotations[images.AnnotationManifestSubject] != "" {
			continue
		}
		if entry.Platform != nil && !platforms.Default().Match(*entry.Platform) {
			foreign[name] = platforms.Format(*entry.Platform)
			continue
		}
		image, err := findImage(ctx, store, name, entry)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		found = addFound(found, image)
	}
	for name, platform := range foreign {
		if !slices.ContainsFunc(found, func(f foundImage) bool { return slices.Contains(f.names, name) }) {
			return nil, fmt.Errorf("image %s is for %s, and this machine is %s; save it with --platform", name, platform, platforms.DefaultString())
		}
	}
	if len(found) == 0 {
		return nil, errors.New("the archive names no image; write it with \"docker save NAME\" and not by image id")
	}
	return found, nil
}

// addFound adds image to found. Images with the same target become one that has the names of both.
func addFound(found []foundImage, image foundImage) []foundImage {
	for i, other := range found {
		if other.target.Digest == image.target.Digest {
			found[i].names = append(other.names, image.names...)
			return found
		}
	}
	return append(found, image)
}

// nameOf returns the full name of an entry of an archive's index, "" if it has none.
func nameOf(entry ocispec.Descriptor) string {
	for _, annotation := range []string{images.AnnotationImageName, ocispec.AnnotationRefName} {
		if name := entry.Annotations[annotation]; name != "" {
			return fullName(name)
		}
	}
	return ""
}

// findImage checks whether all blobs of the image are there, and labels them.
func findImage(ctx context.Context, store content.Store, name string, target ocispec.Descriptor) (foundImage, error) {
	image := foundImage{names: []string{name}, target: target}
	image.target.Annotations = nil // the annotations describe the archive, not the image
	platform := platforms.Default()
	children := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := images.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc // labels can only be set on a blob that is there
		}
		if err == nil && images.IsManifestType(desc.MediaType) && image.manifest.Digest == "" && hasPlatform(ctx, store, desc, platform) {
			image.manifest = desc
		}
		return children, err
	}
	handler := images.SetChildrenLabels(store, images.FilterPlatforms(children, platform))
	if err := images.Walk(ctx, handler, image.target); err != nil {
		return image, fmt.Errorf("read its manifests: %w", err)
	}
	if image.manifest.Digest == "" {
		return image, fmt.Errorf("the archive holds nothing of it for %s", platforms.DefaultString())
	}
	_, _, _, missing, err := images.Check(ctx, store, image.manifest, platform)
	if err != nil {
		return image, err
	}
	if len(missing) > 0 {
		return image, fmt.Errorf("blob %s is missing in the archive, or its content has another digest; save the image again", missing[0].Digest)
	}
	if image.config, err = images.Config(ctx, store, image.manifest, platform); err != nil {
		return image, err
	}
	if named, err := reference.ParseNamed(name); err == nil {
		if digested, ok := named.(reference.Digested); ok && digested.Digest() != image.target.Digest {
			return image, fmt.Errorf("the archive has it with digest %s", image.target.Digest)
		}
	}
	return image, nil
}

// hasPlatform reports whether the configuration of a manifest is there and is for platform.
func hasPlatform(ctx context.Context, store content.Store, manifest ocispec.Descriptor, platform platforms.Matcher) bool {
	if manifest.Platform != nil {
		return platform.Match(*manifest.Platform)
	}
	have, err := images.Platforms(ctx, store, manifest)
	return err != nil || len(have) == 0 || platform.Match(have[0])
}

// digestNames returns the names by which pods ask for exactly this image: REPOSITORY@DIGEST of the
// index, and of the manifest for this machine.
func (f foundImage) digestNames() map[string]ocispec.Descriptor {
	names := map[string]ocispec.Descriptor{}
	for _, name := range f.names {
		named, err := reference.ParseNamed(name)
		if err != nil {
			continue
		}
		for _, desc := range []ocispec.Descriptor{f.manifest, f.target} {
			names[reference.TrimNamed(named).Name()+"@"+desc.Digest.String()] = desc
		}
	}
	return names
}

// awaitTimeout bounds the time until CRI knows new names. It usually takes milliseconds.
const awaitTimeout = 10 * time.Second

// awaitCRI returns when CRI knows the names, so that the next pod finds its image. An event
// notifies CRI. After awaitTimeout it returns too: CRI learns of the names in any case.
func (s *ImageStore) awaitCRI(ctx context.Context, found []foundImage) {
	ctx, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	const poll = 10 * time.Millisecond
	for _, image := range found {
		for name := range image.allNames() {
			for !s.knownToCRI(ctx, name, image.config.Digest.String()) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(poll):
				}
			}
		}
	}
}

func (f foundImage) allNames() map[string]ocispec.Descriptor {
	names := f.digestNames()
	for _, name := range f.names {
		names[name] = f.target
	}
	return names
}

func (s *ImageStore) knownToCRI(ctx context.Context, name, id string) bool {
	status, err := s.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	return err == nil && status.Image != nil && status.Image.Id == id
}
