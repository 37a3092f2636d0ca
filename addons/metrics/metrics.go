// Package metrics serves the cluster's resource metrics API, metrics.k8s.io, which `kubectl top`
// and autoscalers use. It runs metrics-server as a library, in this process.
//
// It owns the APIService v1beta1.metrics.k8s.io, the Service metrics-server that the APIService
// refers to, and upstream's service account and roles. It uses upstream's storage and API
// unchanged, on a separate generic apiserver (apiserver.go). It decides itself when to query the
// kubelets (sampler.go, README.md).
//
// Enter with New and run the Server as a component; Remove deletes what it made. Upstream keeps its
// own figures in package variables, so there is one Server for each process.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-base/metrics/legacyregistry"
	metricsapi "sigs.k8s.io/metrics-server/pkg/api"
	"sigs.k8s.io/metrics-server/pkg/scraper"
	"sigs.k8s.io/metrics-server/pkg/scraper/client/resource"
	"sigs.k8s.io/metrics-server/pkg/storage"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/internal/limit"
)

// Name is the addon's name in settings, status and logs.
const Name = "metrics"

// Port is the port of Config.Address where the API is served to the apiserver.
const Port = 10251

// ServiceName is the server name that the apiserver expects. The certificate in Config.CertFile
// contains it.
const ServiceName = account + "." + namespace + ".svc"

// Config defines where the server listens and which cluster it serves. It never changes after New.
type Config struct {
	Access api.Access
	// Address is the listening address; the apiserver reaches it.
	Address  netip.Addr
	NodeName string
	// CertFile and KeyFile hold a certificate for ServiceName. The authority in Access.CAFile signs
	// it, as well as the kubelets' certificates. The files may be renewed at any time.
	CertFile, KeyFile string
	// Budgets limit the resources that strangers may use in the process. With nil only the port has
	// its limits.
	Budgets *limit.Budgets
}

// Server is the addon. It implements component.Component and component.Troubled, which reports when
// another program serves the metrics.
type Server struct {
	api.Troubles
	cfg    Config
	kube   kubernetes.Interface // as an administrator
	client *rest.Config         // as upstream's service account
	objs   *api.Objects
	events *api.Events
	ready  chan struct{}
}

// New makes the server. It may be called once in a process.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, client: cfg.Access.As(api.ServiceAccount(account), Name), ready: make(chan struct{})}
	admin := cfg.Access.Admin(Name)
	var err error
	if s.kube, err = kubernetes.NewForConfig(admin); err != nil {
		return nil, fmt.Errorf("make %s's client: %w", Name, err)
	}
	if s.objs, err = api.NewObjects(admin, Name); err != nil {
		return nil, err
	}
	// The process has one registry. kube-apiserver shows the metrics that have no endpoint of their
	// own.
	err = errors.Join(
		scraper.RegisterScraperMetrics(legacyregistry.Register),
		metricsapi.RegisterAPIMetrics(legacyregistry.Register),
		storage.RegisterStorageMetrics(legacyregistry.Register),
	)
	if err != nil {
		return nil, fmt.Errorf("register %s's own metrics: %w", Name, err)
	}
	return s, nil
}

// Name implements component.Component.
func (*Server) Name() string { return Name }

// Ready implements component.Component. The addon is ready when the API is served and registered
// with the apiserver.
func (s *Server) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return errors.New("the metrics API is not served yet")
	}
}

// Run implements component.Component.
func (s *Server) Run(ctx context.Context) error {
	ca, err := os.ReadFile(s.cfg.Access.CAFile)
	if err != nil {
		return fmt.Errorf("read the authority of our certificate: %w", err)
	}
	s.events = api.NewEvents(s.kube, Name)
	defer s.events.Close()
	register := registration(ca)
	err = api.Retry(ctx, Name, func(ctx context.Context) error {
		if err := s.objs.Check(ctx, append(s.cfg.objects(), register)...); err != nil {
			return err
		}
		return s.objs.Apply(ctx, s.cfg.objects()...)
	})
	if err == nil {
		err = s.serve(ctx, register)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, api.ErrForeign):
		// Another program serves the metrics. The API must stay up so that users can change this.
		s.Note("the addon stands by", err.Error())
		s.events.Warn(registrationRef(), "NotOurs", err.Error())
		close(s.ready)
		<-ctx.Done()
		return nil
	}
	return err
}

// serve runs the API until ctx ends. It serves the API before it registers it with the apiserver,
// so that no client finds it missing.
func (s *Server) serve(ctx context.Context, register api.Object) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	caches, err := newCaches(s.client)
	if err != nil {
		return err
	}
	kubelets, err := resource.NewForConfig(s.kubelets())
	if err != nil {
		return fmt.Errorf("make the kubelets' client: %w", err)
	}
	sampler := newSampler(scraper.NewScraper(caches.nodeLister(), kubelets, sampleTimeout, nil), caches.allNodes)
	if err := caches.tell(sampler); err != nil {
		return err
	}
	wg.Go(func() { caches.nodes.RunWithContext(ctx) })
	wg.Go(func() { caches.pods.Informer().RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), caches.nodes.HasSynced, caches.pods.Informer().HasSynced) {
		return nil
	}
	server, err := s.apiserver(ctx)
	if err != nil {
		return err
	}
	if err := metricsapi.Install(sampler, caches.pods.Lister(), caches.nodeLister(), server, nil); err != nil {
		return fmt.Errorf("install the metrics API: %w", err)
	}
	wg.Go(func() { sampler.run(ctx) })
	ended := make(chan error, 1)
	wg.Go(func() { ended <- server.PrepareRun().RunWithContext(ctx) })
	err = api.Retry(ctx, Name, func(ctx context.Context) error { return s.objs.Apply(ctx, register) })
	if err != nil {
		return err
	}
	close(s.ready)
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return fmt.Errorf("serve the metrics API: %w", errors.Join(err, errors.New("it ended by itself")))
	}
}

func registrationRef() *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "apiregistration.k8s.io/v1", Kind: "APIService", Name: "v1beta1.metrics.k8s.io"}
}
