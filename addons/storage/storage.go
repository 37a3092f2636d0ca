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

func (c Config) volumes() string { return layout.Data(c.DataDir).Volumes() }
func (c Config) link() string    { return layout.Run(c.RunDir).Volumes() }

// Provisioner is the addon. It implements component.Component, and component.Troubled: which claims have no volume, and
// which volumes cannot be removed.
type Provisioner struct {
	troubles api.Troubles
	cfg      Config
	kube     kubernetes.Interface // with the provisioner's own rights
	admin    kubernetes.Interface
	objs     *api.Objects
	ready    chan struct{}

	// Copies of what is in the cluster, the library's and ours.
	claims, volumes cache.SharedIndexInformer
	controller      *controller.ProvisionController
	release         context.CancelFunc // ends what the controller has from its making on: its events
}

// New makes the provisioner. The library's controller, which is a part of it, adds to client-go's scheme, which all
// clients of the process read without a lock: New must be called before anything else runs.
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
		// A volume that is deleted before its claim loses its directory too.
		controller.AddFinalizer(true),
		controller.ClaimsInformer(p.claims), controller.VolumesInformer(p.volumes),
	), cancel
}

// follow makes the copies of claims and volumes.
func (p *Provisioner) follow() {
	factory := informers.NewSharedInformerFactory(p.kube, controller.DefaultResyncPeriod)
	p.claims = factory.Core().V1().PersistentVolumeClaims().Informer()
	p.volumes = factory.Core().V1().PersistentVolumes().Informer()
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
	defer p.release()
	if err := p.prepareDir(); err != nil {
		return err
	}
	err := api.Retry(ctx, Name, func(ctx context.Context) error { return p.objs.Apply(ctx, objects()...) })
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, api.ErrForeign):
		// Somebody else's class of that name. The API must stay up for them to change their mind.
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

// prepareDir makes the volumes' directory, and the link that volumes name.
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
	_ = os.Remove(fresh) // of a start that was cut short
	if err := os.Symlink(p.cfg.volumes(), fresh); err != nil {
		return fmt.Errorf("link the volumes' directory: %w", err)
	}
	if err := os.Rename(fresh, p.cfg.link()); err != nil {
		return fmt.Errorf("link the volumes' directory: %w", err)
	}
	return nil
}
