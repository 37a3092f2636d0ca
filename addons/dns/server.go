// Package dns is the cluster's DNS server: CoreDNS as a library, in this process, behind the cluster DNS address.
//
// It owns the Service kube-dns with its endpoints, the ConfigMap coredns and who may read what CoreDNS reads;
// kube-proxy leads the cluster DNS address to the port where it listens on the pod bridge. Users configure it as
// they would CoreDNS in a pod: by the Corefile in the ConfigMap kube-system/coredns and by coredns-custom.
// rewrite.go says how such a Corefile becomes one for this process, README.md why.
//
// Enter with New and run the Server as a component; Remove takes away what it made. CoreDNS keeps its
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

// Port is where DNS is served on Config.Address, over UDP and TCP. It is not 53, which another server on the
// machine may hold for all addresses.
const Port = 10053

// Reasons of events on the ConfigMap coredns.
const (
	reasonBroken = "CorefileInvalid"
	reasonLoaded = "CorefileLoaded"
	reasonLoop   = "ForwardingLoop"
	// reasonForeign is of a cluster that somebody else serves.
	reasonForeign = "NotOurs"
)

// What `mote status` tells of.
const (
	aboutConfig  = "ConfigMap " + namespace + "/" + configName
	aboutLoop    = "forwarding"
	aboutObjects = "the addon stands by"
)

// Config says where and for whom to serve. It is never changed after New.
type Config struct {
	Access api.Access
	// Address is the one to listen on; pods reach it. ClusterIP is the Service's.
	Address, ClusterIP netip.Addr
	// Domain is the cluster's, e.g. cluster.local.
	Domain   string
	NodeName string
	// RunDir holds the Corefile that is in force, as rewritten.
	RunDir string
	// ResolvConfs are resolver files, best first. The first one that names a server counts.
	ResolvConfs []string
	// Budgets bound the connections of clients; nil does too, without reports.
	Budgets *limit.Budgets
}

// Server is the addon. It implements component.Component, and component.Troubled: which Corefile is not in force.
type Server struct {
	api.Troubles
	cfg    Config
	client *rest.Config // the kubernetes plugin's
	kube   kubernetes.Interface
	objs   *api.Objects
	events *api.Events

	front    *front
	instance *caddy.Instance // used by Run only
	building *caddy.Instance // what start is making. Used by Run only
	ready    chan struct{}
}

// New makes the server. It may be called once in the life of a process.
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

// Trouble implements component.Troubled: what is wrong with the Corefile, and too many queries.
func (s *Server) Trouble() []string {
	list := s.Troubles.Trouble()
	if text := s.front.gate.Trouble(); text != "" {
		list = append(list, text)
	}
	return list
}

// Name implements component.Component.
func (*Server) Name() string { return Name }

// Ready implements component.Component: a Corefile is in force, and kube-proxy knows of us.
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
		// Somebody else serves the cluster. The API must stay up for them to change their mind.
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

// follow keeps what the ConfigMaps and resolver files say in force.
func (s *Server) follow(ctx context.Context, maps cache.Store, changed <-chan struct{}) error {
	var tried sources
	for {
		current, missing := s.sources(maps)
		if missing {
			// Deleted: the default comes back, and with it the next change.
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

// load puts sources in force. When they are wrong it says so and leaves things as they are; at the start, when
// there is nothing to leave, the default Corefile steps in.
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

// start has CoreDNS serve from, in place of what it serves now. Sockets pass from the one to the other.
func (s *Server) start(from sources) (err error) {
	s.building = nil
	s.front.plan()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("CoreDNS panicked: %v", r) // a user's text must not end the cluster
		}
		if err == nil {
			s.front.commit() // done already, unless this is the first
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
		err = errors.New("CoreDNS panicked; the log says where") // Restart recovers and forgets
	}
	if err != nil {
		// Errors name files by their path here; users know them by their key.
		text := strings.TrimPrefix(err.Error(), "starting with listener file descriptors: ")
		return errors.New(strings.ReplaceAll(text, dir+string(filepath.Separator), ""))
	}
	s.instance = next
	return nil
}

// discardTimeout is for callbacks that wait for a part that has not begun when the instance was refused.
const discardTimeout = time.Second

// discard ends what a refused instance has begun: CoreDNS forgets it with its watches, timers and sockets.
func discard(refused *caddy.Instance) {
	_ = refused.Stop() // says what is wrong itself
	var ending sync.WaitGroup
	for _, end := range refused.OnShutdown {
		ending.Go(func() {
			defer func() { _ = recover() }() // of a part that is half made
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

// say tells users what is wrong, once; "" is that it is not any more.
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

// watchConfig follows the ConfigMaps. stop waits for the end.
func (s *Server) watchConfig(ctx context.Context, change func()) (store cache.Store, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	// All of the namespace's, which are few: one watch for our two.
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

// watchResolvConfs follows the directories of the resolver files, because the files are usually replaced.
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

// followFiles calls change for what happens to the resolver files, until watcher is closed.
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
			// Something was not heard. Until this is read, nothing more is.
			slog.Warn("the resolver files are read again", "component", Name, "err", err)
			change()
		}
	}
}
