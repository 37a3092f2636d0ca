package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserveroptions "k8s.io/apiserver/pkg/server/options"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/mote-k8s/mote/internal/ciphers"
	"github.com/mote-k8s/mote/internal/layout"
	"github.com/mote-k8s/mote/internal/series"
	"github.com/mote-k8s/mote/server/pki"
)

type controllerManager struct {
	cfg     Config
	options *options.KubeControllerManagerOptions
	health  string // URL from when the options were parsed: Run changes the options
}

// newControllerManager parses the arguments; the files that they name need not exist yet.
func newControllerManager(cfg Config, creds *pki.Credentials) (*controllerManager, error) {
	opts, err := options.NewKubeControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("kube-controller-manager's defaults: %w", err)
	}
	flags := opts.Flags(app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	opts.ParsedFlags = &flags
	if err := parseArgs(flags, "controller-manager-arg", controllerManagerArgs(cfg, creds), cfg.ControllerManagerArgs); err != nil {
		return nil, err
	}
	if err := needsPort("controller-manager-arg", opts.SecureServing); err != nil {
		return nil, err
	}
	return &controllerManager{cfg: cfg, options: opts, health: healthURL(opts.SecureServing, "/healthz?verbose")}, nil
}

// validate reports the faults that upstream finds in the arguments' values. Feature gates must be
// set before.
func (c *controllerManager) validate() error {
	err := c.options.Validate(app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	if err != nil {
		return fmt.Errorf("kube-controller-manager's arguments: %w", err)
	}
	return nil
}

func controllerManagerArgs(cfg Config, creds *pki.Credentials) []arg {
	kubeconfig := creds.Kubeconfig("controller-manager")
	args := servingArgs(cfg, creds, kubeconfig)
	if cfg.Profile == ProfileCIS {
		// Pods that have ended stay for inspection. Upstream keeps 12,500 of them; a node runs 110.
		args = append(args, arg{"terminated-pod-gc-threshold", "100"})
	}
	return append(args, []arg{
		{"secure-port", "10257"},
		{"use-service-account-credentials", "true"},
		// Upstream creates this directory, by default one below /usr, which may be read-only and
		// which no reset would remove.
		{"flex-volume-plugin-dir", layout.Data(cfg.DataDir).VolumePlugins()},
		// The first start creates some 40 service accounts, which takes 4 s at upstream's 20
		// requests/s. The apiserver protects itself with priority and fairness.
		{"kube-api-qps", "200"},
		{"kube-api-burst", "400"},

		{"allocate-node-cidrs", "true"},
		{"cluster-cidr", cfg.ClusterCIDR.String()},
		{"node-cidr-mask-size", fmt.Sprint(nodeCIDRBits)},
		{"service-cluster-ip-range", cfg.ServiceCIDR.String()},

		{"root-ca-file", creds.Bundle(pki.ServerAuthority)},
		{"service-account-private-key-file", creds.TokenKey()},
		{"cluster-signing-kubelet-serving-cert-file", creds.Path("server-ca.crt")},
		{"cluster-signing-kubelet-serving-key-file", creds.Path("server-ca.key")},
		{"cluster-signing-kubelet-client-cert-file", creds.Path("client-ca.crt")},
		{"cluster-signing-kubelet-client-key-file", creds.Path("client-ca.key")},
		{"cluster-signing-kube-apiserver-client-cert-file", creds.Path("client-ca.crt")},
		{"cluster-signing-kube-apiserver-client-key-file", creds.Path("client-ca.key")},
		{"cluster-signing-legacy-unknown-cert-file", creds.Path("client-ca.crt")},
		{"cluster-signing-legacy-unknown-key-file", creds.Path("client-ca.key")},
	}...)
}

// servingArgs returns the arguments that the controller manager and the scheduler share. With these
// files neither asks the apiserver for its authentication settings or creates an RSA key at the
// start.
func servingArgs(cfg Config, creds *pki.Credentials, kubeconfig string) []arg {
	return []arg{
		{"kubeconfig", kubeconfig},
		{"authentication-kubeconfig", kubeconfig},
		{"authorization-kubeconfig", kubeconfig},
		{"leader-elect", "false"}, // there is one server, and a lease costs a write every two seconds
		{"bind-address", cfg.MetricsAddress.String()},
		{"tls-cert-file", creds.Path("localhost.crt")},
		{"tls-private-key-file", creds.Path("localhost.key")},
		{"tls-cipher-suites", strings.Join(ciphers.Names(), ",")},
		{"profiling", "false"},
		{"client-ca-file", creds.Bundle(pki.ClientAuthority)},
		{"requestheader-client-ca-file", creds.Bundle(pki.FrontProxyAuthority)},
		{"requestheader-allowed-names", pki.FrontProxyUser},
	}
}

// needsPort refuses arguments that switch off the port that Ready uses.
func needsPort(option string, serving *apiserveroptions.SecureServingOptions) error {
	if serving.BindPort == 0 {
		return fmt.Errorf(`unsupported --%s "secure-port=0": mote asks this port whether the component is ready`, option)
	}
	return nil
}

// healthURL returns the URL of a health endpoint on a component's own port.
func healthURL(serving *apiserveroptions.SecureServingOptions, path string) string {
	host := serving.BindAddress.String()
	if serving.BindAddress.IsUnspecified() {
		host = "localhost"
	}
	return fmt.Sprintf("https://%s%s", joinHostPort(host, serving.BindPort), path)
}

// healthTLS returns a configuration that does not verify the server: neither the request nor the
// answer is secret, and the user may have given the port another certificate.
func healthTLS() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func (*controllerManager) Name() string { return "kube-controller-manager" }

func (c *controllerManager) Run(ctx context.Context) error {
	stop, err := c.cfg.listen(ctx, c.options.SecureServing, statusBudget(c.Name()))
	if err != nil {
		return err
	}
	defer stop()
	config, err := c.options.Config(ctx, app.KnownControllers(), app.ControllersDisabledByDefault(), app.ControllerAliases())
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	if err := createServiceAccounts(ctx, config.Client); err != nil {
		return err
	}
	front, err := newFront(series.ControllerManager, config.SecureServing, &config.Authentication, &config.Authorization)
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	defer front.serve(ctx)()
	if err := app.Run(ctx, config.Complete()); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errStopped
	}
	return nil
}

// createServiceAccounts creates the controllers' service accounts in parallel. Upstream creates
// each missing one, with three requests, while it builds the controllers one after the other, and
// the kubelet waits for the last.
func createServiceAccounts(ctx context.Context, client kubernetes.Interface) error {
	accounts := client.CoreV1().ServiceAccounts(metav1.NamespaceSystem)
	existing, err := accounts.List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list service accounts: %w", err)
	}
	exists := map[string]bool{}
	for _, account := range existing.Items {
		exists[account.Name] = true
	}
	var tasks []task
	for _, role := range bootstrappolicy.ControllerRoles() {
		name := strings.TrimPrefix(role.Name, "system:controller:")
		if exists[name] {
			continue
		}
		tasks = append(tasks, func(ctx context.Context) error {
			account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
			_, err := accounts.Create(ctx, account, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
	}
	return runTasks(ctx, tasks)
}

// Ready waits until /healthz lists a controller: upstream adds them all at once, after it has built
// the last. Only their constructors initialise the volume plugins (attach-detach, persistent volume
// binder and expander; k8s.io/kubernetes/pkg/controller/volume).
func (c *controllerManager) Ready(ctx context.Context) error {
	known := app.KnownControllers()
	return waitHealthy(ctx, healthTLS(), c.health, func(body string) error {
		for _, name := range passedChecks(body) {
			if slices.Contains(known, name) {
				return nil
			}
		}
		return errors.New("waiting for controllers to be built")
	})
}
