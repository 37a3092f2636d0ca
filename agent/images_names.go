package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// setNames gives the images of an archive their names, all of them or none, and returns the names
// with tags. A name that had a pin keeps it.
func (s *ImageStore) setNames(ctx context.Context, found []foundImage, o ImportOptions) ([]string, error) {
	var names []string
	var undo []func(context.Context) error
	set := func(name string, target ocispec.Descriptor, labels map[string]string) error {
		back, err := s.setName(ctx, name, target, labels)
		if err == nil {
			undo = append(undo, back)
		}
		return err
	}
	err := func() error {
		for _, image := range found {
			for name, target := range image.digestNames() {
				// The pin belongs to the tag, so that an image that the tag no longer leads to can
				// be collected.
				if err := set(name, target, map[string]string{importedLabel: target.Digest.String()}); err != nil {
					return err
				}
			}
			labels := o.labels()
			labels[importedLabel] = image.target.Digest.String()
			for _, name := range image.names {
				if err := set(name, image.target, labels); err != nil {
					return err
				}
				names = append(names, name)
			}
		}
		return nil
	}()
	if err == nil {
		return names, nil
	}
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	for _, step := range slices.Backward(undo) {
		err = errors.Join(err, step(back))
	}
	return nil, err
}

// setName makes name lead to target and adds labels to those that it has. undo restores the state
// from before.
func (s *ImageStore) setName(ctx context.Context, name string, target ocispec.Descriptor, labels map[string]string) (undo func(context.Context) error, err error) {
	service := s.client.ImageService()
	before, err := service.Get(ctx, name)
	if errdefs.IsNotFound(err) {
		if _, err := service.Create(ctx, images.Image{Name: name, Target: target, Labels: labels}); err != nil {
			return nil, fmt.Errorf("name image %s: %w", name, err)
		}
		return func(ctx context.Context) error { return service.Delete(ctx, name) }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up image %s: %w", name, err)
	}
	labels = maps.Clone(labels)
	if before.Target.Digest != target.Digest {
		labels[managedLabel] = "" // so that CRI gives the new target its second name
	}
	fields := []string{"target"}
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	if _, err := service.Update(ctx, images.Image{Name: name, Target: target, Labels: labels}, fields...); err != nil {
		return nil, fmt.Errorf("name image %s: %w", name, err)
	}
	return func(ctx context.Context) error {
		_, err := service.Update(ctx, before, "target", "labels")
		return err
	}, nil
}

// setLabels changes labels of a name. An empty value removes the label.
func (s *ImageStore) setLabels(ctx context.Context, name string, labels map[string]string) error {
	fields := make([]string, 0, len(labels))
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	_, err := s.client.ImageService().Update(ctx, images.Image{Name: name, Labels: labels}, fields...)
	if err != nil {
		return fmt.Errorf("label image %s: %w", name, err)
	}
	return nil
}
