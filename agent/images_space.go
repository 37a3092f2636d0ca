package agent

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	evictionapi "k8s.io/kubernetes/pkg/kubelet/eviction/api"

	containerd "github.com/containerd/containerd/v2/client"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/mote-k8s/mote/internal/disk"
)

// In these labels of containerd's namespace the server publishes how much of the images' disk an
// import must leave free. The verbs are other processes and do not know the kubelet's arguments.
const (
	spaceRootLabel   = "mote.dev/images-root"
	spaceSocketLabel = "mote.dev/images-socket" // the path in the server's view
	spaceBytesLabel  = "mote.dev/images-keep-free"
	spaceInodesLabel = "mote.dev/images-keep-free-inodes"
)

const (
	// spacePoll is the interval at which an import checks the disk. In this time a fast disk takes
	// some 200 MB, a fraction of the space that stays free.
	spacePoll = 100 * time.Millisecond
	// spaceSlack is the space that an import may take from a disk that is already too full. It is
	// enough for a manifest, or for content that is already there.
	spaceSlack = 16 << 20
	// inodeSlack is the same limit, counted in files.
	inodeSlack = 1000
)

// space describes the disk that an import writes to, and how much the import leaves free. Below
// that, the kubelet evicts pods.
type space struct {
	root, socket  string
	bytes, inodes uint64
	look          func(dir string) (disk.Info, error)
}

// keepFree returns the space that the kubelet's eviction limits demand.
func keepFree(c Config) (space, error) {
	s := space{root: c.data().Containerd(), socket: ContainerdSocket(c), look: disk.Of}
	limits, err := evictionLimits(c)
	if err != nil {
		return s, err
	}
	on, err := disk.Of(s.root)
	if err != nil {
		return s, err
	}
	for _, limit := range limits {
		switch limit.Signal {
		case evictionapi.SignalImageFsAvailable:
			s.bytes = wanted(limit, on.Size)
		case evictionapi.SignalImageFsInodesFree:
			s.inodes = wanted(limit, on.Inodes)
		}
	}
	return s, nil
}

func wanted(limit evictionapi.Threshold, all uint64) uint64 {
	return uint64(evictionapi.GetThresholdQuantity(limit.Value, resource.NewQuantity(int64(all), resource.BinarySI)).Value())
}

// publish writes s to labels of containerd's namespace.
func (s space) publish(ctx context.Context, client *containerd.Client) error {
	for label, value := range map[string]string{
		spaceRootLabel: s.root, spaceSocketLabel: s.socket,
		spaceBytesLabel: strconv.FormatUint(s.bytes, 10), spaceInodesLabel: strconv.FormatUint(s.inodes, 10),
	} {
		if err := client.NamespaceService().SetLabel(ctx, imageNamespace, label, value); err != nil {
			return fmt.Errorf("set label %s of containerd's namespace: %w", label, err)
		}
	}
	return nil
}

// publishedSpace reads the labels that publish wrote. socket is the path by which this process
// reaches containerd. A sandbox of "mote run" is reached through /proc/PID/root, and its disk too.
func publishedSpace(ctx context.Context, client *containerd.Client, socket string) (space, error) {
	labels, err := client.NamespaceService().Labels(ctx, imageNamespace)
	if err != nil {
		return space{}, fmt.Errorf("read the labels of containerd's namespace: %w", err)
	}
	s := space{root: labels[spaceRootLabel], socket: labels[spaceSocketLabel], look: disk.Of}
	if s.root == "" {
		return s, nil // the images component has not published it yet
	}
	if prefix, ok := strings.CutSuffix(socket, s.socket); ok {
		s.root = prefix + s.root
	}
	for label, to := range map[string]*uint64{spaceBytesLabel: &s.bytes, spaceInodesLabel: &s.inodes} {
		if *to, err = strconv.ParseUint(labels[label], 10, 64); err != nil {
			return s, fmt.Errorf("read label %s of containerd's namespace: %w", label, err)
		}
	}
	return s, nil
}

// watch returns a context that ends when the disk has less than s free. Its cause is an error that
// says so. The caller calls stop when it has finished writing.
func (s space) watch(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	if s.root == "" {
		return ctx, func() { cancel(nil) }
	}
	ended := make(chan struct{})
	first, err := s.look(s.root)
	if err != nil {
		cancel(err)
	}
	go func() {
		defer close(ended)
		tick := time.NewTicker(spacePoll)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := s.check(first); err != nil {
					cancel(err)
					return
				}
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// check compares the disk with s, and with the free space that the disk had at first.
func (s space) check(first disk.Info) error {
	now, err := s.look(s.root)
	if err != nil {
		return err
	}
	const todo = "free some, by \"mote image prune\" for one, or import to a larger disk"
	if now.Free < s.bytes && now.Free+spaceSlack < first.Free {
		return fmt.Errorf("the image is too large for the disk of %s: mote keeps %s of it free for pods, and %s are left; %s",
			s.root, humanBytes(s.bytes), humanBytes(now.Free), todo)
	}
	if now.Inodes > 0 && now.FreeInodes < s.inodes && now.FreeInodes+inodeSlack < first.FreeInodes {
		return fmt.Errorf("the image has too many files for the disk of %s: mote keeps %d inodes of it free for pods, and %d are left; %s",
			s.root, s.inodes, now.FreeInodes, todo)
	}
	return nil
}

func humanBytes(n uint64) string {
	const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30
	switch {
	case n >= gib:
		return fmt.Sprintf("%.1f GiB", float64(n)/gib)
	case n >= mib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	}
	return fmt.Sprintf("%.1f KiB", float64(n)/kib)
}
