// Package storage makes volumes for claims. It provides the default StorageClass "local", whose
// volumes are directories of this node. The external-provisioner library makes them in this
// process.
//
// It owns the class, the access rights of its provisioner, the directory <data-dir>/volumes and the
// link <run-dir>/volumes to it. PersistentVolumes name the link: their path can never change, while
// the data directory can.
//
// Enter with New and run the Provisioner as a component. Remove deletes the class and keeps volumes
// and their data. README.md describes the decisions and their reasons.
package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/internal/layout"
)

// Name is the addon's name in settings, status and logs.
const Name = "storage"

// retryMin and retryMax limit the wait between attempts. People free a full disk, which takes long;
// an absent apiserver comes back soon.
const retryMin, retryMax = 500 * time.Millisecond, time.Minute

// workers is the number of volumes that are made or removed at once. A removal takes longer the
// more files there are.
const workers = 4

// Config defines where volumes are stored and for which node. It never changes after New.
type Config struct {
	Access   api.Access
	NodeName string
	// DataDir contains the volumes, RunDir the link to them.
	DataDir, RunDir string
}

func (c Config) volumes() string { return layout.Data(c.DataDir).Volumes() }
func (c Config) link() string    { return layout.Run(c.RunDir).Volumes() }

// Provisioner is the addon. It implements component.Component and component.Troubled, which reports
// claims without a volume and volumes that cannot be removed.
type Provisioner struct {
	troubles api.Troubles
	cfg      Config
	kube     kubernetes.Interface // with the provisioner's own rights
	admin    kubernetes.Interface
	objs     *api.Objects
	ready    chan struct{}

	// These are caches of cluster objects, shared by the library and mote.
	claims, volumes cache.SharedIndexInformer
	controller      *controller.ProvisionController
	// release ends what the controller runs from its creation on: its events.
	release context.CancelFunc
}

// New makes the provisioner. The library's controller, which the provisioner contains, changes
// client-go's scheme. All clients of the process read that scheme without a lock, so New must be
// called before anything else runs.
func New(cfg Config) (*Provisioner, error) {
	p := &Provisioner{cfg: cfg, ready: make(chan struct{})}
	admin := cfg.Access.Admin(Name)
	var err error
	if p.kube, err = kubernetes.NewForConfig(cfg.Access.As(api.ServiceAccount(account), Name)); err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	if p.admin, err = kubernetes.NewForConfig(admin); err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	p.follow()
	if p.objs, err = api.NewObjects(admin, Name); err != nil {
		return nil, err
	}
	p.controller, p.release = p.newController()
	return p, nil
}

func (p *Provisioner) newController() (*controller.ProvisionController, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	limiter := func() workqueue.TypedRateLimiter[string] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryMin, retryMax)
	}
	return controller.NewProvisionController(ctx, p.kube, provisioner, p,
		controller.LeaderElection(false), // one for each node, each for its own volumes
		controller.Threadiness(workers),
		controller.RateLimiter(limiter()),
		controller.CreateProvisionedPVLimiter(limiter()),
		controller.FailedProvisionThreshold(0), controller.FailedDeleteThreshold(0), // never give up
		// With the finalizer, a volume that is deleted before its claim loses its directory too.
		controller.AddFinalizer(true),
		controller.ClaimsInformer(p.claims), controller.VolumesInformer(p.volumes),
	), cancel
}

// follow makes the caches of claims and volumes.
func (p *Provisioner) follow() {
	factory := informers.NewSharedInformerFactory(p.kube, controller.DefaultResyncPeriod)
	p.claims = factory.Core().V1().PersistentVolumeClaims().Informer()
	p.volumes = factory.Core().V1().PersistentVolumes().Informer()
}

// Remove deletes what the addon made in the cluster. Volumes stay with their data. Without the
// addon, no program removes released volumes.
func Remove(ctx context.Context, access api.Access) error {
	objs, err := api.NewObjects(access.Admin(Name), Name)
	if err != nil {
		return err
	}
	return objs.Remove(ctx, objects()...)
}

// Name implements component.Component.
func (*Provisioner) Name() string { return Name }

// Ready implements component.Component. The addon is ready when the class exists.
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
	defer p.release()
	if err := p.prepareDir(); err != nil {
		return err
	}
	err := api.Retry(ctx, Name, func(ctx context.Context) error { return p.objs.Apply(ctx, objects()...) })
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, api.ErrForeign):
		// Another program owns a class of that name. The API must stay up so that users can change
		// this.
		p.troubles.Note("the addon stands by", err.Error())
		events := api.NewEvents(p.admin, Name)
		defer events.Close()
		events.Warn(classRef(), "NotOurs", err.Error())
		close(p.ready)
		<-ctx.Done()
		return nil
	case err != nil:
		return err
	}
	close(p.ready)

	var wg sync.WaitGroup
	p.controller.ControllerWaitGroup(&wg)
	wg.Go(func() { p.claims.RunWithContext(ctx) })
	wg.Go(func() { p.volumes.RunWithContext(ctx) })
	p.controller.Run(ctx)
	wg.Wait()
	return nil
}

// prepareDir makes the volumes' directory, and the link that PersistentVolumes name.
func (p *Provisioner) prepareDir() error {
	if err := os.MkdirAll(p.cfg.volumes(), 0o711); err != nil {
		return fmt.Errorf("make the volumes' directory: %w", err)
	}
	if err := p.dropInterrupted(); err != nil {
		return err
	}
	target, err := os.Readlink(p.cfg.link())
	if err == nil && target == p.cfg.volumes() {
		return nil
	}
	fresh := filepath.Join(filepath.Dir(p.cfg.link()), "."+filepath.Base(p.cfg.link())+".new")
	_ = os.Remove(fresh) // left by an interrupted start
	if err := os.Symlink(p.cfg.volumes(), fresh); err != nil {
		return fmt.Errorf("link the volumes' directory: %w", err)
	}
	if err := os.Rename(fresh, p.cfg.link()); err != nil {
		return fmt.Errorf("link the volumes' directory: %w", err)
	}
	return nil
}
