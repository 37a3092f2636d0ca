package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	imageNamespace = "k8s.io" // containerd's namespace for CRI
	// pinLabel protects an image from the kubelet's garbage collection. CRI reports it as Pinned.
	pinLabel, pinValue = "io.cri-containerd.pinned", "pinned"
	// managedLabel is a label of CRI. It means that CRI has given the image a second name, the
	// digest of its configuration.
	managedLabel = "io.cri-containerd.image"
	// userPinLabel and directoryPinLabel record the origin of a pin. The latter holds the file name
	// of the archive.
	userPinLabel, directoryPinLabel = "mote.dev/pinned-by-user", "mote.dev/pinned-by-archive"
	// importedLabel holds the digest with which a name was imported.
	importedLabel = "mote.dev/imported"
	// importLease marks the leases of imports under way.
	importLease = "mote.dev/import"
	// importExpiry ends leases that no process deletes. No import takes so long.
	importExpiry = 24 * time.Hour
)

// ImageStore manages the images of a node. Its methods may run concurrently, and in several
// processes.
type ImageStore struct {
	client *containerd.Client
	cri    runtimeapi.ImageServiceClient
	pods   runtimeapi.RuntimeServiceClient
	socket string
	lock   string // each import holds it, shared, while it has a lease
}

// OpenImages connects to the containerd at socket. It does not wait until containerd answers.
func OpenImages(socket string) (*ImageStore, error) {
	client, err := containerd.New(socket, containerd.WithDefaultNamespace(imageNamespace))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", socket, err)
	}
	conn, ok := client.Conn().(grpc.ClientConnInterface)
	if !ok {
		return nil, errors.Join(fmt.Errorf("connect to containerd at %s: not a gRPC connection", socket), client.Close())
	}
	return &ImageStore{
		client: client,
		cri:    runtimeapi.NewImageServiceClient(conn),
		pods:   runtimeapi.NewRuntimeServiceClient(conn),
		socket: socket,
		lock:   importLock(socket),
	}, nil
}

// importLock returns the path of the lock file, which distinguishes imports under way from those
// that were killed.
func importLock(socket string) string { return filepath.Join(filepath.Dir(socket), "images.lock") }

// Close ends the connection.
func (s *ImageStore) Close() error { return s.client.Close() }

// lockImport takes the lock of an import. If the lock is free, it first removes the leftovers of
// imports that were killed.
func (s *ImageStore) lockImport(ctx context.Context) (unlock func() error, err error) {
	f, err := os.OpenFile(s.lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the image store: %w", err)
	}
	if _, err := s.sweepWith(ctx, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// This may wait for the sweep of another process, which is short.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", s.lock, err), f.Close())
	}
	// The write wakes the images component, which sweeps if this process is killed.
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", s.lock, err), f.Close())
	}
	return f.Close, nil
}

// Sweep removes the leftovers of imports that were killed. While an import is under way it removes
// nothing and returns false.
func (s *ImageStore) Sweep(ctx context.Context) (bool, error) {
	f, err := os.OpenFile(s.lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, fmt.Errorf("lock the image store: %w", err)
	}
	defer f.Close()
	return s.sweepWith(ctx, f)
}

func (s *ImageStore) sweepWith(ctx context.Context, lock *os.File) (bool, error) {
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("lock %s: %w", s.lock, err)
	}
	service := s.client.LeasesService()
	left, err := service.List(ctx, fmt.Sprintf("labels.%q", importLease))
	if err != nil {
		return false, fmt.Errorf("list the leases of imports: %w", err)
	}
	for _, lease := range left {
		if err := service.Delete(ctx, lease, leases.SynchronousDelete); err != nil {
			return false, fmt.Errorf("remove what an interrupted import left: %w", err)
		}
	}
	return true, nil
}

// fullName turns a short name, as docker writes it, into the name that CRI looks for: busybox is
// docker.io/library/busybox:latest.
func fullName(name string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return named.String()
}

// parseTag parses a name with a tag and refuses every other name.
func parseTag(name string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("%q is not an image's name, such as app:1 or registry.example/team/app:1: %w", name, err)
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, fmt.Errorf("%q is the name of one content, which cannot be given to another; use a tag", name)
	}
	return named, nil
}
