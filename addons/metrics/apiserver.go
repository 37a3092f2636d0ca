package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/authorization/path"
	"k8s.io/apiserver/pkg/authorization/union"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	metricsapi "sigs.k8s.io/metrics-server/pkg/api"
	"sigs.k8s.io/metrics-server/pkg/api/generated/openapi"

	"github.com/mote-k8s/mote/addons/api"
	"github.com/mote-k8s/mote/internal/ciphers"
	"github.com/mote-k8s/mote/internal/limit"
)

// These are upstream's values for aggregated servers: short enough that a change of rights has an
// effect soon, long enough for storms of requests.
const (
	reviewTTL     = 10 * time.Second
	reviewTimeout = 10 * time.Second
	// handshakeTimeout limits a client's TLS handshake.
	handshakeTimeout = 20 * time.Second
)

// budget returns the limits of the port. Its regular client is the apiserver, on this machine.
func budget() limit.Config {
	return limit.Config{
		Component: Name, Name: "metrics-api", Connections: 256, PerAddress: 64, Own: 256, Start: handshakeTimeout, TLS: true,
	}
}

// apiserver makes the server of the API, which already listens. A caller's identity comes from the
// apiserver in front of this server, or else from a certificate or token that the apiserver
// accepts. The apiserver also decides on the caller's rights.
func (s *Server) apiserver(ctx context.Context) (*genericapiserver.GenericAPIServer, error) {
	cert, err := dynamiccertificates.NewDynamicServingContentFromFiles(Name, s.cfg.CertFile, s.cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("read our certificate: %w", err)
	}
	address := netip.AddrPortFrom(s.cfg.Address, Port).String()
	config := genericapiserver.NewConfig(metricsapi.Codecs)
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	config.ExternalAddress = address
	config.LoopbackClientConfig = &rest.Config{} // for hooks; no hook here would use it
	// Figures and profiles of the process are served elsewhere.
	config.EnableMetrics, config.EnableProfiling, config.EnableIndex = false, false, false
	// These hooks wake up on a timer, one of them every second. Their figures describe a filter
	// that the apiserver in front already has, and a store.
	config.DisabledPostStartHooks.Insert("max-in-flight-filter", "storage-object-count-tracker-hook")
	namer := openapinamer.NewDefinitionNamer(metricsapi.Scheme)
	config.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
	config.SecureServing = &genericapiserver.SecureServingInfo{Cert: cert, CipherSuites: ciphers.IDs()}
	if err := s.delegate(ctx, config); err != nil {
		return nil, err
	}
	listener, err := s.cfg.Budgets.Listen(ctx, address, budget())
	if err != nil {
		return nil, fmt.Errorf("cannot listen for the metrics API on %s: %w; stop who does, or set --disable=%s", address, err, Name)
	}
	config.SecureServing.Listener = listener
	server, err := config.Complete(nil).New(account, genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the metrics API's server: %w", err), listener.Close())
	}
	return server, nil
}

// delegate leaves authentication and authorization to the apiserver.
func (s *Server) delegate(ctx context.Context, config *genericapiserver.Config) error {
	client, err := kubernetes.NewForConfig(s.client)
	if err != nil {
		return fmt.Errorf("make %s's client: %w", Name, err)
	}
	var trust *authenticatorfactory.DelegatingAuthenticatorConfig
	// The apiserver publishes its authorities soon after it is ready.
	err = api.Retry(ctx, Name, func(ctx context.Context) (err error) {
		trust, err = readTrust(ctx, client)
		return err
	})
	if err != nil {
		return err
	}
	trust.TokenAccessReviewClient, trust.CacheTTL = client.AuthenticationV1(), reviewTTL
	trust.TokenAccessReviewTimeout, trust.WebhookRetryBackoff = reviewTimeout, options.DefaultAuthWebhookRetryBackoff()
	for _, ca := range []dynamiccertificates.CAContentProvider{trust.ClientCertificateCAContentProvider, trust.RequestHeaderConfig.CAContentProvider} {
		if err := config.Authentication.ApplyClientCert(ca, config.SecureServing); err != nil {
			return fmt.Errorf("trust the apiserver's clients: %w", err)
		}
	}
	config.Authentication.RequestHeaderConfig = trust.RequestHeaderConfig
	if config.Authentication.Authenticator, _, err = trust.New(); err != nil {
		return fmt.Errorf("delegate authentication: %w", err)
	}
	config.Authorization.Authorizer, err = delegatedAuthorizer(client)
	return err
}

func delegatedAuthorizer(client kubernetes.Interface) (authorizer.Authorizer, error) {
	health, err := path.NewAuthorizer([]string{"/healthz", "/livez", "/readyz"})
	if err != nil {
		return nil, fmt.Errorf("delegate authorization: %w", err)
	}
	review, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: client.AuthorizationV1(), AllowCacheTTL: reviewTTL, DenyCacheTTL: reviewTTL,
		WebhookRetryBackoff: options.DefaultAuthWebhookRetryBackoff(),
	}.New()
	if err != nil {
		return nil, fmt.Errorf("delegate authorization: %w", err)
	}
	// The apiserver would always permit the first group. It belongs to that group when it checks
	// whether this server is available.
	return union.New(authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup), health, review), nil
}

// readTrust reads from the cluster which authorities its API servers trust. Upstream watches this
// ConfigMap. Here its writer is in the same process, and has the same authorities for as long as it
// runs.
func readTrust(ctx context.Context, client kubernetes.Interface) (*authenticatorfactory.DelegatingAuthenticatorConfig, error) {
	const name = "extension-apiserver-authentication"
	config, err := client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read whom the apiserver trusts: %w", err)
	}
	trust, err := parseTrust(config)
	if err != nil {
		return nil, fmt.Errorf("read whom the apiserver trusts: ConfigMap %s/%s: %w", namespace, name, err)
	}
	return trust, nil
}

func parseTrust(config *corev1.ConfigMap) (*authenticatorfactory.DelegatingAuthenticatorConfig, error) {
	var errs []error
	list := func(key string) headerrequest.StaticStringSlice {
		var values []string
		if err := json.Unmarshal([]byte(config.Data[key]), &values); err != nil {
			errs = append(errs, fmt.Errorf("key %s: %w", key, err))
		}
		return values
	}
	authority := func(key string) dynamiccertificates.CAContentProvider {
		ca, err := dynamiccertificates.NewStaticCAContent(key, []byte(config.Data[key]))
		if err != nil {
			errs = append(errs, fmt.Errorf("key %s: %w", key, err))
		}
		return ca
	}
	trust := &authenticatorfactory.DelegatingAuthenticatorConfig{
		ClientCertificateCAContentProvider: authority("client-ca-file"),
		RequestHeaderConfig: &authenticatorfactory.RequestHeaderConfig{
			CAContentProvider:   authority("requestheader-client-ca-file"),
			AllowedClientNames:  list("requestheader-allowed-names"),
			UsernameHeaders:     list("requestheader-username-headers"),
			UIDHeaders:          list("requestheader-uid-headers"),
			GroupHeaders:        list("requestheader-group-headers"),
			ExtraHeaderPrefixes: list("requestheader-extra-headers-prefix"),
		},
	}
	return trust, errors.Join(errs...)
}
