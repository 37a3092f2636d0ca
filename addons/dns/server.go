// Package dns runs the cluster's DNS server: CoreDNS as a library, in this process, behind the
// cluster DNS address.
//
// It owns the Service kube-dns with its endpoints, the ConfigMap coredns, and the access rights to
// what CoreDNS reads. kube-proxy sends traffic for the cluster DNS address to the port where the
// server listens on the pod bridge. Users configure it like CoreDNS in a pod: with the Corefile in
// the ConfigMap kube-system/coredns and with coredns-custom. rewrite.go describes how such a
// Corefile becomes one for this process. README.md gives the reasons.
//
// Enter with New and run the Server as a component; Remove deletes what it made. CoreDNS keeps its
// directives in package variables, so there is one Server for each process.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/limit"
)

// Name is the addon's name in settings, status and logs.
const Name = "dns"

// Port is the port of Config.Address where DNS is served over UDP and TCP. It is not 53, because
// another server on the machine may hold port 53 on all addresses.
const Port = 10053

// These are the reasons of events on the ConfigMap coredns.
const (
	reasonBroken = "CorefileInvalid"
	reasonLoaded = "CorefileLoaded"
	reasonLoop   = "ForwardingLoop"
	// reasonForeign is for a cluster whose DNS another program serves.
	reasonForeign = "NotOurs"
)

// These are the subjects that `mote status` reports on.
const (
	aboutConfig  = "ConfigMap " + namespace + "/" + configName
	aboutLoop    = "forwarding"
	aboutObjects = "the addon stands by"
)

// Config defines where the server listens and which cluster it serves. It never changes after New.
type Config struct {
	Access api.Access
	// Address is the listening address; pods reach it. ClusterIP is the address of the Service.
	Address, ClusterIP netip.Addr
	// Domain is the cluster domain, e.g. cluster.local.
	Domain   string
	NodeName string
	// RunDir holds the active Corefile, as rewritten.
	RunDir string
	// ResolvConfs are resolver files in order of preference. The first one that names a server is
	// used.
	ResolvConfs []string
	// Budgets limit the connections of clients. With nil the limits apply without reports.
	Budgets *limit.Budgets
}

// Server is the addon. It implements component.Component and component.Troubled, which reports a
// Corefile that is not active.
type Server struct {
	api.Troubles
	cfg    Config
	client *rest.Config // the client of the kubernetes plugin
	kube   kubernetes.Interface
	objs   *api.Objects
	events *api.Events

	front    *front
	instance *caddy.Instance // used by Run only
	building *caddy.Instance // the instance that start is making; used by Run only
	ready    chan struct{}
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
	s.front = newFront(cfg.Budgets)
	if err := s.front.registerMetrics(); err != nil {
		return nil, err
	}
	s.register()
	return s, nil
}

// Trouble implements component.Troubled. It reports errors in the Corefile and an excess of
// queries.
func (s *Server) Trouble() []string {
	list := s.Troubles.Trouble()
	if text := s.front.gate.Trouble(); text != "" {
		list = append(list, text)
	}
	return list
}

// Name implements component.Component.
func (*Server) Name() string { return Name }

// Ready implements component.Component. The server is ready when a Corefile is active and
// kube-proxy has the endpoint.
func (s *Server) Ready(ctx context.Context) error {
	select {
	case <-s.ready:
		return nil
	case <-ctx.Done():
		return errors.New("no Corefile is in force yet")
	}
}

// Run implements component.Component.
func (s *Server) Run(ctx context.Context) error {
	s.events = api.NewEvents(s.kube, Name)
	defer s.events.Close()
	err := api.Retry(ctx, Name, func(ctx context.Context) error {
		return errors.Join(s.cfg.keepConfig(ctx, s.kube), s.objs.Apply(ctx, s.cfg.objects()...))
	})
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, api.ErrForeign):
		// Another program serves the cluster's DNS. The API must stay up so that users can change
		// this.
		s.say(aboutObjects, reasonForeign)(err.Error())
		close(s.ready)
		<-ctx.Done()
		return nil
	case err != nil:
		return err
	}
	changed, change := api.Changes()
	maps, stopMaps := s.watchConfig(ctx, change)
	defer stopMaps()
	stopFiles, err := s.watchResolvConfs(change)
	if err != nil {
		return err
	}
	defer stopFiles()
	defer s.stop()
	return s.follow(ctx, maps, changed)
}

// follow applies the ConfigMaps and resolver files again after each change.
func (s *Server) follow(ctx context.Context, maps cache.Store, changed <-chan struct{}) error {
	var tried sources
	for {
		current, missing := s.sources(maps)
		if missing {
			// The ConfigMap was deleted. Make the default one again; the watch then reports the
			// next change.
			err := api.Retry(ctx, Name, func(ctx context.Context) error { return s.cfg.keepConfig(ctx, s.kube) })
			if err != nil && ctx.Err() == nil {
				return err
			}
		} else if !current.equal(tried) {
			if err := s.load(current); err != nil {
				return err
			}
			tried = current
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// load activates sources. If they are invalid, it reports the error and keeps the active
// configuration. At the start, when no configuration is active, it uses the default Corefile.
func (s *Server) load(from sources) error {
	err := s.start(from)
	if err == nil {
		s.serving()
		s.Note(aboutConfig, "")
		s.events.Tell(configRef(), reasonLoaded, "the Corefile is in force; upstream servers: %v", from.upstreams)
		return nil
	}
	if s.instance != nil {
		s.say(aboutConfig, reasonBroken)(fmt.Sprintf("%v; the last good Corefile stays in force", err))
		return nil
	}
	s.say(aboutConfig, reasonBroken)(fmt.Sprintf("%v; mote's default Corefile is in force instead", err))
	fallback := sources{corefile: s.cfg.defaultCorefile(), upstreams: from.upstreams}
	if err := s.start(fallback); err != nil {
		return fmt.Errorf("start CoreDNS with the default Corefile: %w", err)
	}
	s.serving()
	return nil
}

func (s *Server) serving() {
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
}

// start makes CoreDNS serve from instead of the present sources. The new instance takes over the
// sockets of the old one.
func (s *Server) start(from sources) (err error) {
	s.building = nil
	s.front.plan()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("CoreDNS panicked: %v", r) // a user's text must not end the cluster
		}
		if err == nil {
			s.front.commit() // already done, unless this is the first start
			return
		}
		if s.building != nil {
			discard(s.building)
		}
		s.front.abandon()
	}()
	dir := layout.Run(s.cfg.RunDir).DNS()
	text, err := from.write(dir)
	if err != nil {
		return err
	}
	input := caddy.CaddyfileInput{
		Filepath: filepath.Join(dir, corefileKey), Contents: []byte(text), ServerTypeName: "dns",
	}
	var next *caddy.Instance
	if s.instance == nil {
		next, err = caddy.Start(input)
	} else {
		next, err = s.instance.Restart(input)
	}
	if err == nil && next == nil {
		err = errors.New("CoreDNS panicked; the log says where") // Restart recovers and drops the panic
	}
	if err != nil {
		// Errors contain the local path of a file; users know the file by its key.
		text := strings.TrimPrefix(err.Error(), "starting with listener file descriptors: ")
		return errors.New(strings.ReplaceAll(text, dir+string(filepath.Separator), ""))
	}
	s.instance = next
	return nil
}

// discardTimeout limits shutdown functions that wait for a goroutine that had not started when the
// instance was refused.
const discardTimeout = time.Second

// discard ends what a refused instance has started. CoreDNS itself drops the instance and leaves
// its watches, timers and sockets behind.
func discard(refused *caddy.Instance) {
	_ = refused.Stop() // logs its own errors
	var ending sync.WaitGroup
	for _, end := range refused.OnShutdown {
		ending.Go(func() {
			defer func() { _ = recover() }() // in case a plugin is only half set up
			_ = end()
		})
	}
	ended := make(chan struct{})
	go func() { defer close(ended); ending.Wait() }()
	select {
	case <-ended:
	case <-time.After(discardTimeout):
	}
}

func (s *Server) stop() {
	if s.instance == nil {
		return
	}
	s.front.close()
	err := errors.Join(s.instance.ShutdownCallbacks()...)
	if err = errors.Join(err, s.instance.Stop()); err != nil {
		slog.Warn("stop was not clean", "component", Name, "err", err)
	}
	s.instance = nil
}

// say returns a function that reports a problem to users once. An empty message reports that the
// problem is over.
func (s *Server) say(about, reason string) func(message string) {
	return func(message string) {
		if s.Note(about, message) && message != "" {
			s.events.Warn(configRef(), reason, message)
		}
	}
}

func configRef() *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: namespace, Name: configName}
}

// watchConfig watches the ConfigMaps. stop ends the watch and waits for its end.
func (s *Server) watchConfig(ctx context.Context, change func()) (store cache.Store, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	// Watch all ConfigMaps of the namespace, which are few. So one watch serves both.
	lw := cache.NewListWatchFromClient(s.kube.CoreV1().RESTClient(), "configmaps", namespace, fields.Everything())
	store, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: lw, ObjectType: &corev1.ConfigMap{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { change() },
			UpdateFunc: func(any, any) { change() },
			DeleteFunc: func(any) { change() },
		},
	})
	done := make(chan struct{})
	go func() { defer close(done); informer.RunWithContext(ctx) }()
	cache.WaitForCacheSync(ctx.Done(), informer.HasSynced)
	return store, func() { cancel(); <-done }
}

// watchResolvConfs watches the directories of the resolver files, because the files are usually
// replaced.
func (s *Server) watchResolvConfs(change func()) (stop func(), err error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the machine's resolver files: %w", err)
	}
	for _, file := range s.cfg.ResolvConfs {
		if err := watcher.Add(filepath.Dir(file)); err != nil {
			slog.Warn("cannot follow a resolver file", "component", Name, "file", file, "err", err)
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); s.followFiles(watcher, change) }()
	return func() { watcher.Close(); <-done }, nil
}

// followFiles calls change for each event on a resolver file, until watcher is closed.
func (s *Server) followFiles(watcher *fsnotify.Watcher, change func()) {
	for {
		select {
		case event, ok := <-watcher.Events:
			if !ok {
				return
			}
			if slices.Contains(s.cfg.ResolvConfs, event.Name) {
				change()
			}
		case err, ok := <-watcher.Errors:
			if !ok {
				return
			}
			// Some events were lost. The channel must be read, or no further event arrives.
			slog.Warn("the resolver files are read again", "component", Name, "err", err)
			change()
		}
	}
}
