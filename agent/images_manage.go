package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errNoImage returns the error for a name that leads nowhere.
func errNoImage(name string) error {
	return fmt.Errorf("no image %s; \"mote image list\" shows what there is", name)
}

// Remove deletes a name, and also the image if no other tag leads to it. Unless force is set, it
// refuses images that are pinned or that containers use.
func (s *ImageStore) Remove(ctx context.Context, name string, force bool) error {
	image, err := s.lookUp(ctx, name)
	if err != nil {
		return err
	}
	if image == nil {
		return s.removeUnknown(ctx, name)
	}
	full := fullName(name)
	named := slices.Contains(image.RepoTags, full)
	last := !named || len(image.RepoTags) == 1
	if err := s.checkRemove(ctx, image, full, last, force); err != nil {
		return fmt.Errorf("cannot remove %s: %w", name, err)
	}
	if last {
		return s.removeID(ctx, image.Id)
	}
	if err := s.client.ImageService().Delete(ctx, full, images.SynchronousDelete()); err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	return nil
}

// lookUp finds an image by a name or an ID. It returns nil if CRI does not know the image.
func (s *ImageStore) lookUp(ctx context.Context, name string) (*runtimeapi.Image, error) {
	status, err := s.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}})
	if err != nil {
		return nil, fmt.Errorf("look up image %s: %w", name, err)
	}
	return status.Image, nil
}

// has reports whether CRI knows an image.
func (s *ImageStore) has(ctx context.Context, name string) bool {
	image, err := s.lookUp(ctx, name)
	return err == nil && image != nil
}

// removeUnknown deletes a name that CRI does not know because blobs of the image are missing.
func (s *ImageStore) removeUnknown(ctx context.Context, name string) error {
	err := s.client.ImageService().Delete(ctx, fullName(name), images.SynchronousDelete())
	if errdefs.IsNotFound(err) {
		return errNoImage(name)
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", name, err)
	}
	return nil
}

func (s *ImageStore) removeID(ctx context.Context, id string) error {
	if _, err := s.cri.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}}); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return nil
}

// checkRemove returns the reason why the name should stay, or nil. last means that the image goes
// with the name.
func (s *ImageStore) checkRemove(ctx context.Context, image *runtimeapi.Image, name string, last, force bool) error {
	if slices.Contains(image.RepoTags, PauseImage) && last {
		return errors.New("every pod needs it")
	}
	if force {
		return nil
	}
	for _, tag := range image.RepoTags {
		stored, err := s.client.ImageService().Get(ctx, tag)
		if err != nil || stored.Labels[pinLabel] != pinValue || !last && tag != name {
			continue
		}
		if archive := stored.Labels[directoryPinLabel]; archive != "" {
			return fmt.Errorf("%s is pinned by %s in the image directory; remove that file first", tag, archive)
		}
		return fmt.Errorf("%s is pinned; run \"mote image unpin %s\" first, or add --force", tag, tag)
	}
	if !last {
		return nil
	}
	users, err := s.users(ctx)
	if err != nil {
		return err
	}
	if pod := users[image.Id]; pod != "" {
		return fmt.Errorf("pod %s uses it; delete the pod first, or add --force", pod)
	}
	return nil
}

// users maps the IDs of images to a pod, NAMESPACE/NAME, that has a container of the image.
// Containers that have ended count too, as they do for the kubelet.
func (s *ImageStore) users(ctx context.Context) (map[string]string, error) {
	list, err := s.pods.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	users := map[string]string{}
	for _, c := range list.Containers {
		pod := c.Labels["io.kubernetes.pod.namespace"] + "/" + c.Labels["io.kubernetes.pod.name"]
		for _, id := range []string{c.ImageId, c.ImageRef, c.GetImage().GetImage()} {
			users[id] = pod
		}
	}
	delete(users, "")
	return users, nil
}

// Prune removes images that are not pinned and that no container uses. Without all, it removes only
// those without a tag. It returns one name of each removed image.
func (s *ImageStore) Prune(ctx context.Context, all bool) ([]string, error) {
	if _, err := s.Sweep(ctx); err != nil {
		return nil, err
	}
	list, err := s.cri.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	users, err := s.users(ctx)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, image := range list.Images {
		if image.Pinned || users[image.Id] != "" || len(image.RepoTags) > 0 && !all {
			continue
		}
		if err := s.removeID(ctx, image.Id); err != nil {
			return removed, err
		}
		names := slices.Concat(image.RepoTags, image.RepoDigests, []string{image.Id})
		removed = append(removed, names[0])
	}
	slices.Sort(removed)
	return removed, nil
}

// Tag adds the name target to the image that source names, by a name or an ID.
func (s *ImageStore) Tag(ctx context.Context, source, target string) (string, error) {
	if _, err := parseTag(target); err != nil {
		return "", err
	}
	image, err := s.resolve(ctx, source)
	if err != nil {
		return "", err
	}
	found, err := findImage(ctx, s.client.ContentStore(), fullName(target), image.Target)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", source, err)
	}
	names, err := s.setNames(ctx, []foundImage{found}, ImportOptions{})
	if err != nil {
		return "", err
	}
	s.awaitCRI(ctx, []foundImage{found})
	return names[0], nil
}

// resolve finds the stored image of a name or an ID.
func (s *ImageStore) resolve(ctx context.Context, name string) (images.Image, error) {
	image, err := s.client.ImageService().Get(ctx, fullName(name))
	if err == nil || !errdefs.IsNotFound(err) {
		return image, err
	}
	known, err := s.lookUp(ctx, name)
	if err != nil {
		return images.Image{}, err
	}
	if known == nil {
		return images.Image{}, errNoImage(name)
	}
	return s.client.ImageService().Get(ctx, known.Id)
}

// Pin protects a name from the kubelet's garbage collection and from Prune.
func (s *ImageStore) Pin(ctx context.Context, name string) (string, error) {
	image, err := s.resolve(ctx, name)
	if err != nil {
		return "", err
	}
	return image.Name, s.setLabels(ctx, image.Name, map[string]string{pinLabel: pinValue, userPinLabel: "yes"})
}

// Unpin removes the pin that Pin set. Images of an archive in the image directory stay pinned.
func (s *ImageStore) Unpin(ctx context.Context, name string) (string, error) {
	image, err := s.resolve(ctx, name)
	if err != nil {
		return "", err
	}
	if archive := image.Labels[directoryPinLabel]; archive != "" {
		return "", fmt.Errorf("%s is pinned by %s in the image directory; remove that file", image.Name, archive)
	}
	if image.Name == PauseImage {
		return "", fmt.Errorf("cannot unpin %s: every pod needs it", image.Name)
	}
	return image.Name, s.setLabels(ctx, image.Name, map[string]string{pinLabel: "", userPinLabel: ""})
}

// releaseArchive removes the pin of an archive in the image directory from a name. A user's pin
// stays.
func (s *ImageStore) releaseArchive(ctx context.Context, name, archive string) error {
	image, err := s.client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) || err == nil && image.Labels[directoryPinLabel] != archive {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up image %s: %w", name, err)
	}
	labels := map[string]string{directoryPinLabel: ""}
	if image.Labels[userPinLabel] == "" {
		labels[pinLabel] = ""
	}
	return s.setLabels(ctx, name, labels)
}

// allHeld reports whether all names exist and are pinned by some archive in the image directory.
func (s *ImageStore) allHeld(ctx context.Context, names []string) bool {
	for _, name := range names {
		image, err := s.client.ImageService().Get(ctx, name)
		if err != nil || image.Labels[pinLabel] != pinValue || image.Labels[directoryPinLabel] == "" {
			return false
		}
	}
	return true
}

// Save writes the images to an archive that docker load and Import accept. The archive holds only
// the content for this machine's platform.
func (s *ImageStore) Save(ctx context.Context, w io.Writer, names []string) error {
	// The lease protects the blobs meanwhile. Only blobs without a name could be lost.
	ctx, done, err := s.client.WithLease(ctx)
	if err != nil {
		return fmt.Errorf("create a lease for the archive: %w", err)
	}
	defer done(ctx)
	opts := []archive.ExportOpt{archive.WithPlatform(platforms.DefaultStrict())}
	for _, name := range names {
		image, err := s.resolve(ctx, name)
		if err != nil {
			return err
		}
		if isID(image.Name) {
			return fmt.Errorf("cannot save %s: an archive needs a name; run \"mote image tag %s NAME\" first", name, strings.TrimPrefix(name, "sha256:"))
		}
		opts = append(opts, archive.WithImage(s.client.ImageService(), image.Name))
	}
	if err := s.client.Export(ctx, w, opts...); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}
