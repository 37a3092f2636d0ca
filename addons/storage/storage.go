// Package storage makes volumes for claims: the default StorageClass "local", whose volumes are directories of
// this node, made by the external-provisioner library in this process.
//
// It owns the class, who may do what for it, the directory <data-dir>/volumes and the link <run-dir>/volumes
// to it. PersistentVolumes name the link: their path can never be changed, the data directory can.
//
// Enter with New and run the Provisioner as a component; Remove takes the class away and leaves volumes and
// their data alone. README.md says what was decided and why.
package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/mote-k8s/mote/addons/api"
)

// Name is the addon's name in settings, status and logs.
const Name = "storage"

// What is tried again waits so long: a full disk is emptied by people, an absent apiserver is back soon.
const retryMin, retryMax = 500 * time.Millisecond, time.Minute

// workers make or remove volumes at once. A removal may take as long as its files are many.
const workers = 4

// Config says where volumes lie and for which node. It is never changed after New.
type Config struct {
	Access   api.Access
	NodeName string
	// DataDir holds the volumes, RunDir the link to them.
	DataDir, RunDir string
}

func (c Config) volumes() string { return filepath.Join(c.DataDir, "volumes") }
func (c Config) link() string    { return filepath.Join(c.RunDir, "volumes") }

// Provisioner is the addon. It implements component.Component.
type Provisioner struct {
	cfg   Config
	kube  kubernetes.Interface // with the provisioner's own rights
	objs  *api.Objects
	ready chan struct{}
}

// New makes the provisioner.
func New(cfg Config) (*Provisioner, error) {
	p := &Provisioner{cfg: cfg, ready: make(chan struct{})}
	var err error
	if p.kube, err = kubernetes.NewForConfig(cfg.Access.As(api.ServiceAccount(account), Name)); err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	p.objs, err = api.NewObjects(cfg.Access.Admin(Name), Name)
	return p, err
}

// Remove takes away what the addon made in the cluster. Volumes stay, with their data; without the addon
// nobody removes those that are released.
func Remove(ctx context.Context, access api.Access) error {
	objs, err := api.NewObjects(access.Admin(Name), Name)
	if err != nil {
		return err
	}
	return objs.Remove(ctx, objects()...)
}

// Name implements component.Component.
func (*Provisioner) Name() string { return Name }

// Ready implements component.Component: the class is there.
func (p *Provisioner) Ready(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("StorageClass %s is not there yet", className)
	}
}

// Run implements component.Component.
func (p *Provisioner) Run(ctx context.Context) error {
	if err := p.prepareDir(); err != nil {
		return err
	}
	err := api.Retry(ctx, Name, func(ctx context.Context) error { return p.objs.Apply(ctx, objects()...) })
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, api.ErrForeign):
		// Somebody else's class of that name. The API must stay up for them to change their mind.
		klog.FromContext(ctx).Error(err, "the addon stands by")
		close(p.ready)
		<-ctx.Done()
		return nil
	case err != nil:
		return err
	}
	close(p.ready)

	limiter := func() workqueue.TypedRateLimiter[string] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryMin, retryMax)
	}
	c := controller.NewProvisionController(ctx, p.kube, provisioner, p,
		controller.LeaderElection(false), // one for each node, each for its own volumes
		controller.Threadiness(workers),
		controller.RateLimiter(limiter()),
		controller.CreateProvisionedPVLimiter(limiter()),
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0), // never give up
		// A volume that is deleted before its claim loses its directory too.
		controller.AddFinalizer(true),
	)
	var wg sync.WaitGroup
	c.ControllerWaitGroup(&wg)
	c.Run(ctx)
	wg.Wait()
	return nil
}

// prepareDir makes the volumes' directory, and the link that volumes name.
func (p *Provisioner) prepareDir() error {
	if err := os.MkdirAll(p.cfg.volumes(), 0o711); err != nil {
		return fmt.Errorf("make the volumes' directory: %w", err)
	}
	target, err := os.Readlink(p.cfg.link())
	if err == nil && target == p.cfg.volumes() {
		return nil
	}
	fresh := filepath.Join(p.cfg.RunDir, ".volumes.new")
	_ = os.Remove(fresh) // of a start that was cut short
	if err := os.Symlink(p.cfg.volumes(), fresh); err != nil {
		return fmt.Errorf("link the volumes' directory: %w", err)
	}
	if err := os.Rename(fresh, p.cfg.link()); err != nil {
		return fmt.Errorf("link the volumes' directory: %w", err)
	}
	return nil
}
