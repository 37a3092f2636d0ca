package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/server/flagz"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	rbacrest "k8s.io/kubernetes/pkg/registry/rbac/rest"
	schedulingrest "k8s.io/kubernetes/pkg/registry/scheduling/rest"

	"github.com/mote-k8s/mote/internal/ciphers"
	"github.com/mote-k8s/mote/internal/fair"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/series"
	"github.com/mote-k8s/mote/server/pki"
)

type apiServer struct {
	cfg       Config
	creds     *pki.Credentials
	options   *options.ServerRunOptions
	completed options.CompletedOptions
	watches   *fair.Gate
}

// newAPIServer parses the arguments; the files that they name need not exist yet.
func newAPIServer(cfg Config, creds *pki.Credentials) (*apiServer, error) {
	s := &apiServer{cfg: cfg, creds: creds, options: options.NewServerRunOptions(), watches: newWatchGate(cfg.Memory)}
	addNodeRanges(s.options, cfg)
	flags := s.options.Flags()
	s.options.Flagz = flagz.NamedFlagSetsReader{FlagSets: flags}
	return s, parseArgs(flags, "apiserver-arg", s.args(), cfg.APIServerArgs)
}

func (s *apiServer) args() []arg {
	tls := s.creds.Path
	reading, mutating := inflight(s.cfg.Memory)
	return slices.Concat(s.datastoreArgs(), s.auditArgs(), s.profileArgs(), []arg{
		{"max-requests-inflight", fmt.Sprint(reading)},
		{"max-mutating-requests-inflight", fmt.Sprint(mutating)},
		{"encryption-provider-config", layout.Data(s.cfg.DataDir).EncryptionConfig()},
		{"encryption-provider-config-automatic-reload", "true"}, // keys are rotated without a restart

		{"bind-address", s.cfg.ListenAddress.String()},
		{"secure-port", fmt.Sprint(s.cfg.ListenPort)},
		{"advertise-address", s.cfg.AdvertiseAddress.String()},
		{"tls-cert-file", tls("apiserver.crt")},
		{"tls-private-key-file", tls("apiserver.key")},
		{"tls-cipher-suites", strings.Join(ciphers.Names(), ",")},
		// The profiles of the process are on mote's own socket, for root only.
		{"profiling", "false"},
		{"service-cluster-ip-range", s.cfg.ServiceCIDR.String()},
		// This server is always the endpoint of the kubernetes Service. Upstream's default finds
		// that out through a lease in the datastore: it asks every ten seconds and writes each
		// time.
		{"endpoint-reconciler-type", "master-count"},

		// Anonymous requests stay on by default, as upstream: RBAC grants them only health and
		// version.
		{"client-ca-file", s.creds.Bundle(pki.ClientAuthority)},
		{"authorization-mode", "Node,RBAC"},
		{"enable-admission-plugins", s.admissionPlugins()},
		{"allow-privileged", "true"},
		{"service-account-issuer", "https://kubernetes.default.svc." + s.cfg.ClusterDomain},
		{"service-account-signing-key-file", s.creds.TokenKey()},
		{"service-account-key-file", s.creds.TokenPublicKeys()},

		{"kubelet-certificate-authority", s.creds.Bundle(pki.ServerAuthority)},
		{"kubelet-client-certificate", tls("apiserver-kubelet-client.crt")},
		{"kubelet-client-key", tls("apiserver-kubelet-client.key")},
		// Addresses come first: nothing guarantees that a node's name resolves.
		{"kubelet-preferred-address-types", "InternalIP,ExternalIP,InternalDNS,ExternalDNS,Hostname"},

		{"requestheader-client-ca-file", s.creds.Bundle(pki.FrontProxyAuthority)},
		{"requestheader-allowed-names", pki.FrontProxyUser},
		{"requestheader-username-headers", "X-Remote-User"},
		{"requestheader-uid-headers", "X-Remote-Uid"},
		{"requestheader-group-headers", "X-Remote-Group"},
		{"requestheader-extra-headers-prefix", "X-Remote-Extra-"},
		{"proxy-client-cert-file", tls("front-proxy-client.crt")},
		{"proxy-client-key-file", tls("front-proxy-client.key")},
		// At a stop, open watches end at once. Without this the stop waits a minute for them, and
		// the watches of this process's other components never end by themselves.
		{"shutdown-watch-termination-grace-period", "2s"},
		// The apiserver calls aggregated servers and webhooks at their endpoints, without waiting
		// for kube-proxy's rules.
		{"enable-aggregator-routing", "true"},
	})
}

// datastoreArgs returns the arguments for the datastore. Only an external etcd gets TLS files:
// mote's own socket uses no TLS.
func (s *apiServer) datastoreArgs() []arg {
	args := []arg{{"etcd-servers", s.cfg.DatastoreEndpoint}}
	if !strings.HasPrefix(s.cfg.DatastoreEndpoint, "https://") {
		return args
	}
	for _, file := range []arg{
		{"etcd-cafile", s.cfg.DatastoreCAFile}, {"etcd-certfile", s.cfg.DatastoreCertFile}, {"etcd-keyfile", s.cfg.DatastoreKeyFile},
	} {
		if file.value != "" {
			args = append(args, file)
		}
	}
	return args
}

// complete reports every fault that upstream finds in the values of the arguments.
func (s *apiServer) complete() error {
	completed, err := s.options.Complete(context.Background())
	if err != nil {
		return fmt.Errorf("kube-apiserver's arguments: %w", err)
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return fmt.Errorf("kube-apiserver's arguments: %w", utilerrors.NewAggregate(errs))
	}
	s.completed = completed
	return nil
}

func (s *apiServer) Name() string { return "kube-apiserver" }

// Trouble implements component.Troubled.
func (s *apiServer) Trouble() []string {
	if text := s.watches.Trouble(); text != "" {
		return []string{text}
	}
	return nil
}

func (s *apiServer) Run(ctx context.Context) error {
	stop, err := s.cfg.listen(ctx, s.completed.SecureServing.SecureServingOptions, apiBudget())
	if err != nil {
		return err
	}
	defer stop()
	config, err := app.NewConfig(s.completed)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	boundLists(&config.Aggregator.GenericConfig.Config, s.cfg.Memory)
	boundWatches(&config.Aggregator.GenericConfig.Config, s.watches)
	// mote replaces these two hooks; bootstrap.go explains why. The three servers of the chain
	// share the set, and a hook that the arguments disabled is already in it.
	disabled := config.KubeAPIs.ControlPlane.Generic.DisabledPostStartHooks
	hooks := bootstrapHooks()
	hooks[trustHook] = s.forgetAuthorities()
	for name := range hooks {
		if disabled.Has(name) {
			delete(hooks, name)
		}
		disabled.Insert(name)
	}
	completed, err := config.Complete()
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	chain, err := app.CreateServerChain(completed)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	replaceMetrics(chain.GenericAPIServer.Handler.NonGoRestfulMux, series.APIServer)
	for name, hook := range hooks {
		disabled.Delete(name)
		if err := chain.GenericAPIServer.AddPostStartHook(name, hook); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	prepared, err := chain.PrepareRun()
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := prepared.Run(ctx); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errStopped
	}
	return nil
}

// Ready asks as the administrator, who has access whatever RBAC rules are missing.
func (s *apiServer) Ready(ctx context.Context) error {
	admin := pki.Admin(layout.Data(s.cfg.DataDir))
	cert, err := tls.LoadX509KeyPair(admin.CertFile, admin.KeyFile)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.creds.ServerAuthorities())
	config := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}
	return waitHealthy(ctx, config, s.cfg.url()+"/readyz", acceptAny)
}

// Names of the hooks that bootstrap.go replaces.
const (
	rolesHook           = rbacrest.PostStartHookName
	priorityClassesHook = schedulingrest.PostStartHookName
)
