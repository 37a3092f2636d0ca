package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/distribution/reference"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/mote-k8s/mote/internal/component"
)

// pullServer is the image service that the kubelet uses. It passes every call to containerd's,
// except some pulls of imported images. It answers such a pull with the imported image if the image
// is pinned or its registry does not answer: pods with the tag latest always pull, unless they set
// another policy.
//
// A registry on a loopback port, as containerd's first mirror, could answer these pulls as well.
// For all other pulls containerd would report the mirror's 404 instead of the registry's own
// reason, an operator's hosts.toml for the registry would have to be merged with mote's, and any
// local user could reach the port.
type pullServer struct {
	runtimeapi.UnimplementedImageServiceServer
	store      *ImageStore
	registries *silentRegistries
}

// pullSocket returns the path of the socket on which the kubelet finds its image service.
func pullSocket(c Config) string { return c.run().ImagesSocket() }

// servePulls serves the image service on socket until stop is called.
func servePulls(socket string, store *ImageStore, registries *silentRegistries) (stop func(), err error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the socket of a former life: %w", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen for the kubelet's image calls: %w", err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterImageServiceServer(server, &pullServer{store: store, registries: registries})
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(listener); err != nil {
			slog.Error("cannot serve the kubelet's image calls", "component", "images", "err", err)
		}
	})
	return func() {
		server.Stop()
		serving.Wait()
	}, nil
}

// ListImages implements runtimeapi.ImageServiceServer.
func (p *pullServer) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return p.store.cri.ListImages(ctx, r)
}

// ImageStatus implements runtimeapi.ImageServiceServer.
func (p *pullServer) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return p.store.cri.ImageStatus(ctx, r)
}

// RemoveImage implements runtimeapi.ImageServiceServer.
func (p *pullServer) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return p.store.cri.RemoveImage(ctx, r)
}

// ImageFsInfo implements runtimeapi.ImageServiceServer.
func (p *pullServer) ImageFsInfo(ctx context.Context, r *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return p.store.cri.ImageFsInfo(ctx, r)
}

// PullImage implements runtimeapi.ImageServiceServer.
func (p *pullServer) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	name := r.GetImage().GetImage()
	id, pinned := p.store.imported(ctx, name)
	if id != "" && pinned {
		return &runtimeapi.PullImageResponse{ImageRef: id}, nil
	}
	answer, err := p.store.cri.PullImage(ctx, r)
	if err == nil {
		p.registries.answered(name)
		return answer, nil
	}
	if !noAnswer(err) {
		return nil, err
	}
	if id != "" {
		slog.Info("the registry does not answer: a pull gets the imported image", "component", "images", "image", name)
		return &runtimeapi.PullImageResponse{ImageRef: id}, nil
	}
	p.registries.silent(name, err)
	// The kubelet shows this error in the pod's events.
	return nil, status.Errorf(status.Code(err), "%s; without a network, import the image: mote image import FILE", status.Convert(err).Message())
}

// imported returns the ID of the image if it was imported by this name, and has since been neither
// pulled nor given a new tag. A name with a digest is exact and counts as pinned.
func (s *ImageStore) imported(ctx context.Context, name string) (id string, pinned bool) {
	full := fullName(name)
	ctx = namespaces.WithNamespace(ctx, imageNamespace) // a caller may send a namespace of its own
	stored, err := s.client.ImageService().Get(ctx, full)
	if err != nil || stored.Labels[importedLabel] != stored.Target.Digest.String() {
		return "", false
	}
	image, err := s.lookUp(ctx, full)
	if err != nil || image == nil {
		return "", false
	}
	return image.Id, stored.Labels[pinLabel] == pinValue || strings.Contains(full, "@")
}

// noAnswer reports whether a pull failed because no registry could be reached, or a proxy could not
// reach it. CRI's error is text. Go's client reports the status of a proxy that refuses as the
// error of the request. A status of the registry itself appears in another sentence.
func noAnswer(err error) bool {
	text := status.Convert(err).Message()
	if strings.Contains(text, "failed to do request") {
		for _, refusal := range []string{": Bad Gateway", ": Service Unavailable", ": Gateway Timeout", ": Proxy Authentication Required", ": Forbidden"} {
			if strings.HasSuffix(text, refusal) {
				return true
			}
		}
	}
	for _, sign := range []string{"dial tcp", "no such host", "i/o timeout", "connection refused", "network is unreachable", "no route to host", "proxyconnect"} {
		if strings.Contains(text, sign) {
			return true
		}
	}
	return false
}

// silenceMemory is the time for which a registry that does not answer is reported after the last
// try. The kubelet tries at least every five minutes for as long as a pod needs the image.
const silenceMemory = 6 * time.Minute

// silentRegistries reports in `mote status` the registries that do not answer while pods wait for
// images from them.
type silentRegistries struct {
	troubles *component.Troubles
	now      func() time.Time
	wake     chan struct{} // wakes follow; buffered

	mu   sync.Mutex                // guards last
	last map[string]silentRegistry // by registry
}

func newSilentRegistries(troubles *component.Troubles) *silentRegistries {
	return &silentRegistries{troubles: troubles, now: time.Now, wake: make(chan struct{}, 1), last: map[string]silentRegistry{}}
}

// silentRegistry is the last failed pull from a registry.
type silentRegistry struct {
	image string
	at    time.Time
}

func registryOf(image string) string {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return image
	}
	return reference.Domain(named)
}

func about(registry string) string { return "registry " + registry }

// silent records a failed pull. It logs one line for each registry that stops answering.
func (r *silentRegistries) silent(image string, err error) {
	registry := registryOf(image)
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.last[registry]
	r.last[registry] = silentRegistry{image, r.now()}
	r.troubles.Note(about(registry), fmt.Sprintf("does not answer, and pods wait for %s; import it with \"mote image import FILE\", or repair the network", image))
	select {
	case r.wake <- struct{}{}:
	default:
	}
	if !known {
		slog.Warn("a registry does not answer", "component", "images", "registry", registry, "image", image, "err", err)
	}
}

// answered records a pull that succeeded.
func (r *silentRegistries) answered(image string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(registryOf(image))
}

func (r *silentRegistries) forget(registry string) {
	if _, known := r.last[registry]; known {
		delete(r.last, registry)
		r.troubles.Note(about(registry), "")
	}
}

// expire forgets registries whose image is there now, and those from which no pod has pulled for
// silenceMemory. It reports whether some are left.
func (r *silentRegistries) expire(there func(image string) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for registry, pull := range r.last {
		if r.now().Sub(pull.at) > silenceMemory || there(pull.image) {
			r.forget(registry)
		}
	}
	return len(r.last) > 0
}

// follow calls expire regularly until ctx ends. It sleeps while all registries answer.
func (r *silentRegistries) follow(ctx context.Context, there func(image string) bool) {
	const poll = 10 * time.Second
	timer := time.NewTimer(poll)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
			timer.Reset(poll)
		case <-timer.C:
			if r.expire(there) {
				timer.Reset(poll)
			}
		}
	}
}
