package manifests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartapi "helm.sh/helm/v4/pkg/chart"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release"
	"helm.sh/helm/v4/pkg/release/common"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// chartTimeout limits the hooks of one release. Other files wait meanwhile.
	chartTimeout = 2 * time.Minute
	// maxHistory is Helm's own limit.
	maxHistory = 10
)

// charts installs and removes Helm releases like the helm program, so that the program sees them.
type charts struct {
	config *rest.Config
	mapper meta.RESTMapper
}

func newCharts(config *rest.Config, mapper meta.RESTMapper) *charts {
	plain := rest.CopyConfig(config)
	plain.ContentType, plain.AcceptContentTypes = "", "" // Helm reads JSON
	return &charts{plain, mapper}
}

// helm returns Helm's configuration for releases of a namespace.
func (c *charts) helm(namespace string) (*action.Configuration, error) {
	var helm action.Configuration
	// Important messages come back as errors; others may contain values.
	helm.SetLogger(slog.DiscardHandler)
	if err := helm.Init(&getter{c, namespace}, namespace, "secret"); err != nil {
		return nil, fmt.Errorf("configure Helm: %w", err)
	}
	helm.HookOutputFunc = func(_, _, _ string) io.Writer { return io.Discard }
	return &helm, nil
}

// guard turns a panic into an error. A chart is a user's text, and its file is read again at each
// start.
func guard(release string, err *error) {
	if r := recover(); r != nil {
		slog.Error("Helm panicked", "component", Name, "release", release, "panic", r, "stack", string(debug.Stack()))
		*err = fmt.Errorf("release %s: Helm panicked: %v; see the log, mend the chart or remove its file", release, r)
	}
}

// install installs or upgrades a release. It does not change a release that is already correct.
// same is true if the release's file has not changed.
func (c *charts) install(ctx context.Context, want *chart, same bool) (err error) {
	defer guard(want.release(), &err)
	helm, err := c.helm(want.Namespace)
	if err != nil {
		return err
	}
	last, err := lastRelease(helm, want.Name)
	if err != nil {
		return err
	}
	if same && last != nil && last.Info.Status == common.StatusDeployed {
		return nil
	}
	loaded, err := load(want.Chart)
	if err != nil {
		return err
	}
	upgrade, err := c.repair(ctx, helm, last)
	if err != nil {
		return fmt.Errorf("repair release %s: %w", want.release(), err)
	}
	if client, ok := helm.KubeClient.(*kube.Client); ok {
		helm.KubeClient = &wholeClient{Client: client, always: !upgrade}
	}
	if !upgrade {
		do := action.NewInstall(helm)
		do.ReleaseName, do.Namespace, do.CreateNamespace, do.Replace = want.Name, want.Namespace, true, true
		do.Timeout, do.WaitStrategy, do.ForceConflicts = chartTimeout, kube.HookOnlyStrategy, true
		_, err = do.RunWithContext(ctx, loaded, want.Values)
	} else {
		do := action.NewUpgrade(helm)
		do.Namespace, do.MaxHistory, do.ResetValues = want.Namespace, maxHistory, true
		do.Timeout, do.WaitStrategy, do.ForceConflicts = chartTimeout, kube.HookOnlyStrategy, true
		_, err = do.RunWithContext(ctx, want.Name, loaded, want.Values)
	}
	if err != nil {
		return fmt.Errorf("install chart as %s: %w", want.release(), err)
	}
	return nil
}

// wholeClient is Helm's client, except that it refuses a text of which Helm would take only a part.
// Helm reads texts like kubectl (see documents). An upgrade removes the objects of the old release
// that the part lacks.
type wholeClient struct {
	*kube.Client
	// always makes the client check all texts, including a chart's definitions of kinds. Otherwise
	// it does not check the texts that are not validated: they belong to the installed release,
	// which must stay readable.
	always bool
}

// Build implements kube.Interface.
func (c *wholeClient) Build(reader io.Reader, validate bool) (kube.ResourceList, error) {
	text, err := io.ReadAll(reader)
	if err != nil {
		return nil, err
	}
	list, err := c.Client.Build(bytes.NewReader(text), validate)
	if err != nil || !validate && !c.always {
		return list, err
	}
	return list, checkWhole(text, len(list))
}

// checkWhole returns an error if a text has other objects than those that Helm takes.
func checkWhole(text []byte, taken int) error {
	objects, err := decode(text)
	if err != nil {
		return fmt.Errorf("a template's text cannot be read whole: %w", err)
	}
	if len(objects) != taken {
		return fmt.Errorf("a template has %d objects of which Helm would take %d; separate objects by a line of ---", len(objects), taken)
	}
	return nil
}

// load reads a chart and checks that all its dependencies are present.
func load(path string) (chartapi.Charter, error) {
	loaded, err := loader.Load(path)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", path, err)
	}
	parts, err := chartapi.NewAccessor(loaded)
	if err != nil {
		return nil, fmt.Errorf("load chart %s: %w", path, err)
	}
	if err := action.CheckDependencies(loaded, parts.MetaDependencies()); err != nil {
		return nil, fmt.Errorf("load chart %s: %w; put them into its folder charts", path, err)
	}
	return loaded, nil
}

// repair prepares the result of the last attempt for an upgrade, or else for an installation.
func (c *charts) repair(ctx context.Context, helm *action.Configuration, last *releasev1.Release) (upgrade bool, err error) {
	if last == nil || last.Info.Status == common.StatusUninstalled {
		return false, nil
	}
	_, err = helm.Releases.Deployed(last.Name)
	switch {
	case errors.Is(err, driver.ErrNoDeployedReleases), errors.Is(err, driver.ErrReleaseNotFound), last.Info.Status == common.StatusUninstalling:
		return false, c.uninstall(ctx, last.Namespace+"/"+last.Name)
	case err != nil:
		return false, err
	case last.Info.Status.IsPending():
		// An attempt stopped half way, most likely because this process was killed.
		last.SetStatus(common.StatusFailed, "ended half way")
		return true, helm.Releases.Update(last)
	}
	return true, nil
}

// lastRelease returns the latest release of a name, or nil if there is none.
func lastRelease(helm *action.Configuration, name string) (*releasev1.Release, error) {
	found, err := helm.Releases.Last(name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for release %s: %w", name, err)
	}
	last, ok := found.(*releasev1.Release)
	if !ok {
		return nil, fmt.Errorf("look for release %s: it is a %T", name, release.Releaser(found))
	}
	return last, nil
}

// uninstall removes a release, namespace/name, if it exists.
func (c *charts) uninstall(_ context.Context, name string) (err error) {
	defer guard(name, &err)
	namespace, name, _ := strings.Cut(name, "/")
	helm, err := c.helm(namespace)
	if err != nil {
		return err
	}
	do := action.NewUninstall(helm)
	do.IgnoreNotFound, do.Timeout, do.WaitStrategy = true, chartTimeout, kube.HookOnlyStrategy
	if _, err := do.Run(name); err != nil {
		return fmt.Errorf("uninstall release %s/%s: %w", namespace, name, err)
	}
	return nil
}

// getter passes mote's clients to Helm, where the helm program uses a kubeconfig.
type getter struct {
	*charts
	namespace string
}

// ToRESTConfig implements genericclioptions.RESTClientGetter.
func (g *getter) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(g.config), nil }

// ToDiscoveryClient implements genericclioptions.RESTClientGetter.
func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	client, err := discovery.NewDiscoveryClientForConfig(g.config)
	if err != nil {
		return nil, err
	}
	return memory.NewMemCacheClient(client), nil
}

// ToRESTMapper implements genericclioptions.RESTClientGetter.
func (g *getter) ToRESTMapper() (meta.RESTMapper, error) { return g.mapper, nil }

// ToRawKubeConfigLoader implements genericclioptions.RESTClientGetter. Helm reads the namespace
// from it.
func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	overrides := &clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: g.namespace}}
	return clientcmd.NewDefaultClientConfig(*clientcmdapi.NewConfig(), overrides)
}
