package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/eviction"
	"k8s.io/utils/ptr"

	"github.com/mote-k8s/mote/internal/ciphers"
	"github.com/mote-k8s/mote/internal/regular"
)

const (
	kubeletHealthz = "127.0.0.1:10248"
	kubeletPort    = 10250
	// ownerFile is a file in the kubelet's directory. It holds the data directory of the mote that
	// owns the kubelet's directory.
	ownerFile = ".mote"
	// devicePlugins is the directory in which the kubelet waits for device plugins, whatever its
	// root directory.
	devicePlugins = "/var/lib/kubelet/device-plugins"
	// probePeriod is the interval of probes of a component that starts. It is short compared with
	// the time to a ready node. Probing ends with the first success.
	probePeriod = 20 * time.Millisecond
)

// runKubelet runs the kubelet until ctx ends. volumes returns when the kubelet may initialise its
// volume plugins. Upstream leaves some goroutines behind; see README.md.
func runKubelet(ctx context.Context, c Config, volumes func(context.Context) error, ready func()) error {
	h, err := detectHost()
	if err != nil {
		return err
	}
	if err := recordFootprint(c, "", podLogs, containerLogs, filepath.Dir(devicePlugins), devicePlugins); err != nil {
		return err
	}
	if err := claimKubeletDir(c); err != nil {
		return err
	}
	if err := os.MkdirAll(c.data().StaticPods(), 0o700); err != nil {
		return fmt.Errorf("make the static pods' directory: %w", err)
	}
	stopFollowing, err := followFiles(ctx, c)
	if err != nil {
		return err
	}
	defer stopFollowing()
	server, err := newKubeletServer(c, h)
	if err != nil {
		return err
	}
	// The user's arguments may have moved this directory. The pods in it run as root.
	if dir := server.StaticPodPath; dir != "" {
		if _, err := regular.CheckOwner(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("static pods: %w", err)
		}
	}
	if err := portFree(net.JoinHostPort(server.HealthzBindAddress, strconv.Itoa(int(server.HealthzPort))), "the kubelet"); err != nil {
		return err
	}
	deps, err := app.UnsecuredDependencies(ctx, server, utilfeature.DefaultFeatureGate)
	if err != nil {
		return fmt.Errorf("make the kubelet: %w", err)
	}
	deps.VolumePlugins = gated(ctx, deps.VolumePlugins, volumes)
	api, err := takeServer(ctx, c, server, deps)
	if err != nil {
		return err
	}
	defer api.close()
	healthz := fmt.Sprintf("http://%s:%d/healthz", server.HealthzBindAddress, server.HealthzPort)
	failed, ended := make(chan error, 1), make(chan error, 1)
	serving, stop := context.WithCancel(ctx)
	var served sync.WaitGroup
	served.Go(func() {
		if waitHealthy(serving, healthz, func([]byte) bool { return true }) != nil {
			return
		}
		ready()
		if err := api.serve(serving); err != nil {
			failed <- err
		}
	})
	defer func() { stop(); served.Wait() }()
	go func() { ended <- app.Run(ctx, server, deps, utilfeature.DefaultFeatureGate) }()
	select {
	case err = <-failed:
		return err
	case err = <-ended:
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("run the kubelet: %w", err)
	}
	return errors.New("the kubelet ended by itself")
}

// portFree fails if another program listens on address. Upstream only logs that and tries again for
// ever.
func portFree(address, who string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return cannotListen(address, who, err)
	}
	return listener.Close()
}

// waitHealthy returns nil as soon as url answers 200 with a body that accept accepts.
func waitHealthy(ctx context.Context, url string, accept func(body []byte) bool) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}}
	ticker := time.NewTicker(probePeriod)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return fmt.Errorf("probe %s: %w", url, err)
		}
		if response, err := client.Do(request); err == nil {
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err == nil && response.StatusCode == http.StatusOK && accept(body) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// claimKubeletDir marks the kubelet's directory as mote's, or returns an error that names its
// owner.
func claimKubeletDir(c Config) error {
	if err := kubeletDirOwner(c); err != nil {
		return err
	}
	if err := recordFootprint(c, "", c.KubeletDir); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(c.KubeletDir, ownerFile), []byte(c.DataDir+"\n"), 0o600); err != nil {
		return err
	}
	return recordKubeletBind(c)
}

// kubeletDirOwner returns nil if the kubelet's directory is missing, empty or mote's, or if mote
// was interrupted while it claimed the directory.
func kubeletDirOwner(c Config) error {
	owner, err := os.ReadFile(filepath.Join(c.KubeletDir, ownerFile))
	switch {
	case err == nil && strings.TrimSpace(string(owner)) == c.DataDir:
		return nil
	case err == nil:
		return fmt.Errorf("%s belongs to the mote with data directory %s; set another --kubelet-dir",
			c.KubeletDir, strings.TrimSpace(string(owner)))
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the owner of %s: %w", c.KubeletDir, err)
	}
	entries, err := os.ReadDir(c.KubeletDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w", c.KubeletDir, err)
	}
	for _, entry := range entries {
		// lost+found means that an empty disk is mounted there. The other name is left when mote is
		// killed while it writes its mark.
		if entry.Name() != "lost+found" && !strings.HasPrefix(entry.Name(), "."+ownerFile+".") {
			return fmt.Errorf("%s belongs to another kubelet (it holds %s); remove that cluster first or set another --kubelet-dir",
				c.KubeletDir, entry.Name())
		}
	}
	return nil
}

// newKubeletServer returns the kubelet's whole configuration: upstream's defaults, mote's changes,
// then the extra arguments.
func newKubeletServer(c Config, h host) (*options.KubeletServer, error) {
	config, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, fmt.Errorf("make the kubelet's configuration: %w", err)
	}
	configureKubelet(config, c, h)
	flags := options.NewKubeletFlags()
	flags.KubeConfig = c.credential("kubelet.kubeconfig")
	flags.HostnameOverride = c.NodeName
	flags.NodeIP = c.NodeIP.String()
	flags.RootDirectory = c.KubeletDir
	flags.CertDirectory = filepath.Join(c.KubeletDir, "pki")
	args := append([]string{
		"node-labels=" + strings.Join(c.NodeLabels, ","),
		"register-with-taints=" + strings.Join(c.NodeTaints, ","),
	}, c.KubeletArgs...)
	if err := applyKubeletArgs(flags, config, args); err != nil {
		return nil, err
	}
	server := &options.KubeletServer{KubeletFlags: *flags, KubeletConfiguration: *config}
	if server.HealthzPort == 0 {
		return nil, errors.New("unsupported kubelet argument healthz-port=0: mote asks this port whether the kubelet is ready")
	}
	if err := options.ValidateKubeletFlags(&server.KubeletFlags); err != nil {
		return nil, fmt.Errorf("kubelet arguments: %w", err)
	}
	return server, nil
}

// configureKubelet sets the fields that differ from upstream's defaults.
func configureKubelet(config *kubeletconfig.KubeletConfiguration, c Config, h host) {
	config.Address = c.NodeIP.String()
	config.Port = kubeletPort
	healthz := netip.MustParseAddrPort(kubeletHealthz)
	config.HealthzBindAddress, config.HealthzPort = healthz.Addr().String(), int32(healthz.Port())
	config.ReadOnlyPort = 0
	config.Authentication.Anonymous.Enabled = false
	config.Authentication.Webhook.Enabled = true
	config.Authentication.X509.ClientCAFile = c.credential("client-ca.crt")
	config.Authorization.Mode = kubeletconfig.KubeletAuthorizationModeWebhook
	config.TLSCertFile = c.credential("kubelet.crt")
	config.TLSPrivateKeyFile = c.credential("kubelet.key")
	config.TLSCipherSuites = ciphers.Names()
	// mote serves profiles of the process on its own socket, for root alone.
	// EnableDebuggingHandlers stays on: exec and logs are among these handlers.
	config.EnableProfilingHandler, config.EnableDebugFlagsHandler = false, false
	// mote renews the node's certificates itself (docs/architecture.md, "The seam").
	config.RotateCertificates = false

	config.ContainerRuntimeEndpoint = "unix://" + ContainerdSocket(c)
	config.ImageServiceEndpoint = "unix://" + pullSocket(c)
	config.CgroupDriver = "cgroupfs"
	config.CgroupRoot = cgroupRoot
	config.FailCgroupV1 = false
	config.FailSwapOn = false
	config.OOMScoreAdj = int32(h.lowestOOMScore(int(config.OOMScoreAdj)))
	if h.maxFiles > 0 {
		config.MaxOpenFiles = min(config.MaxOpenFiles, h.maxFiles)
	}
	if h.capacity.memory > 0 { // 0: the arguments are checked before the machine is inspected
		config.SystemReserved = h.capacity.systemReserved()
		config.PodPidsLimit = h.capacity.podTasksLimit()
	}
	// Upstream sets these limits when it reads a configuration file. mote has none.
	config.EvictionHard = maps.Clone(eviction.DefaultEvictionHard)
	config.SerializeImagePulls = false
	config.MaxParallelImagePulls = ptr.To[int32](3)
	config.StaticPodPath = c.data().StaticPods()
	config.SeccompDefault = c.SeccompDefault
	config.VolumePluginDir = filepath.Join(c.KubeletDir, "volumeplugins")
	config.ResolverConfig = c.data().ResolvConf()
	if c.ClusterDNS.IsValid() {
		config.ClusterDNS = []string{c.ClusterDNS.String()}
	}
	config.ClusterDomain = c.ClusterDomain
	// The kubelet's iptables chains only show other programs that iptables is used here.
	config.MakeIPTablesUtilChains = c.Proxy == ProxyIPTables
}
