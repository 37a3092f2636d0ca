package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	// Every plugin registers itself. disabledPlugins lists those that are not started.
	_ "github.com/containerd/containerd/v2/cmd/containerd/builtins"
	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containernetworking/cni/libcni"
)

// These are containerd's names of the snapshotters.
const (
	overlayfs = "overlayfs"
	native    = "native"
)

// containerdConfigVersion is the version of the configuration layout that containerdConfig writes.
// containerd as a library does not migrate older layouts.
const containerdConfigVersion = 4

// runContainerd serves containerd until ctx ends. The shims and their containers go on.
func runContainerd(ctx context.Context, c Config, ready func()) error {
	h, err := detectHost()
	if err != nil {
		return err
	}
	if err := prepareCgroups(); err != nil {
		return err
	}
	if c.CNI == CNIBridge {
		// The state that libcni keeps about pods' networks belongs beside the leases, not in
		// /var/lib/cni.
		libcni.CacheDir = c.cniCache()
	}
	if err := preferPayload(c); err != nil {
		return err
	}
	config := containerdConfig(c, h, snapshotter(c))
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return fmt.Errorf("make containerd's directories: %w", err)
	}
	if err := os.MkdirAll(c.run().Sockets(), 0o700); err != nil {
		return fmt.Errorf("make the directory for sockets: %w", err)
	}
	// Pods in user namespaces (hostUsers: false) do not run as root on the host. They must be able
	// to reach their root file systems below this directory.
	if err := os.Chmod(c.RunDir, 0o711); err != nil {
		return fmt.Errorf("open the run directory to pods' users: %w", err)
	}
	if err := cleanTempMounts(config.Root); err != nil {
		return err
	}
	srv, err := server.New(ctx, config)
	if err != nil {
		return fmt.Errorf("make containerd: %w", err)
	}
	defer srv.Stop()
	if err := srv.Start(ctx); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	srv.Wait()
	ready()
	<-ctx.Done()
	return nil
}

// preferPayload puts the payload first in the PATH of this process. containerd and its shims search
// PATH although they are configured with paths: for runc in "shim -info", and after a restart for
// the shims of the second and further containers of a pod. Without their shims these containers
// count as dead.
func preferPayload(c Config) error {
	path := os.Getenv("PATH")
	if strings.HasPrefix(path, c.PayloadDir+":") {
		return nil
	}
	if err := os.Setenv("PATH", c.PayloadDir+":"+path); err != nil {
		return fmt.Errorf("put %s into PATH: %w", c.PayloadDir, err)
	}
	return nil
}

// cleanTempMounts sets the directory in which containerd mounts layers for a moment, and removes
// mounts that a crash left there.
func cleanTempMounts(root string) error {
	dir := filepath.Join(root, "tmpmounts")
	if err := mount.SetTempMountLocation(dir); err != nil {
		return fmt.Errorf("set the place of temporary mounts: %w", err)
	}
	warnings, err := mount.CleanupTempMounts(0)
	if err != nil {
		return fmt.Errorf("clean up temporary mounts in %s: %w", dir, err)
	}
	for _, warning := range warnings {
		slog.Warn("cannot clean up a temporary mount", "component", "containerd", "err", warning)
	}
	return nil
}

// snapshotter returns overlayfs, or "native" (whole copies) where the data directory's filesystem
// cannot carry an overlay, for example because it is an overlay itself. An earlier choice of native
// stays, because the stored images belong to it.
func snapshotter(c Config) string {
	overlay := filepath.Join(c.data().Containerd(), "io.containerd.snapshotter.v1."+overlayfs)
	if usesNative(c) {
		return native
	}
	if err := os.MkdirAll(overlay, 0o700); err != nil {
		return overlayfs // containerd reports this error better
	}
	if err := overlayutils.Supported(overlay); err != nil {
		slog.Warn("overlayfs does not work on the data directory: images are copied whole", "component", "containerd", "err", err)
		return native
	}
	return overlayfs
}

// usesNative reports whether containerd was ever started with the native snapshotter.
func usesNative(c Config) bool {
	_, err := os.Stat(filepath.Join(c.data().Containerd(), "io.containerd.snapshotter.v1."+native, "metadata.db"))
	return err == nil
}

// disabledPlugins lists the plugins that a node does not need: other snapshotters, an API for
// debugging, metrics and monitors that nothing reads, and plugins that would listen or write
// outside mote's directories.
func disabledPlugins(snapshotter string) []string {
	disabled := []string{
		"io.containerd.snapshotter.v1.blockfile",
		"io.containerd.snapshotter.v1.erofs",
		"io.containerd.differ.v1.erofs",
		"io.containerd.mount-handler.v1.erofs",
		"io.containerd.internal.v1.restart",        // polls every 10 s for labels that only ctr sets
		"io.containerd.internal.v1.opt",            // makes /opt/containerd
		"io.containerd.internal.v1.tracing",        // OpenTelemetry, without an endpoint
		"io.containerd.tracing.processor.v1.otlp",  //
		"io.containerd.image-verifier.v1.bindir",   // runs programs of /opt/containerd
		"io.containerd.monitor.task.v1.cgroups",    // the kubelet measures containers itself
		"io.containerd.metrics.v1.grpc-otel",       //
		"io.containerd.metrics.v1.grpc-prometheus", //
		"io.containerd.server.v1.debug",            //
		"io.containerd.server.v1.metrics",          //
		"io.containerd.server.v1.grpc-tcp",         //
		"io.containerd.nri.v1.nri",                 // listens on /var/run/nri/nri.sock
	}
	if snapshotter != native {
		disabled = append(disabled, "io.containerd.snapshotter.v1.native")
	}
	return disabled
}

// containerdConfig returns the settings that /etc/containerd/config.toml would hold.
func containerdConfig(c Config, h host, snapshotter string) *srvconfig.Config {
	return &srvconfig.Config{
		Version:         containerdConfigVersion,
		Root:            c.data().Containerd(),
		State:           c.run().Containerd(),
		DisabledPlugins: disabledPlugins(snapshotter),
		RequiredPlugins: []string{"io.containerd.grpc.v1.cri"},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": ContainerdSocket(c)},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": ContainerdSocket(c) + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{
				"socket_dir": c.run().ShimSockets(),
			},
			"io.containerd.grpc.v1.cri": map[string]any{
				// These serve exec, attach and port-forward. Only the kubelet connects.
				"stream_server_address": "127.0.0.1",
				"stream_server_port":    "0",
			},
			"io.containerd.cri.v1.images": map[string]any{
				"snapshotter":   snapshotter,
				"pinned_images": map[string]any{"sandbox": PauseImage},
				// In seconds. This measures the space that images use. The free space is measured
				// elsewhere.
				"stats_collect_period": 60,
				"registry":             map[string]any{"config_path": registryConfig},
			},
			"io.containerd.transfer.v1.local": map[string]any{
				"config_path": registryConfig,
				"unpack_config": []map[string]any{{
					"platform": "linux", "snapshotter": snapshotter, "differ": "walking",
				}},
			},
			"io.containerd.service.v1.diff-service": map[string]any{"default": []string{"walking"}},
			"io.containerd.cri.v1.runtime":          runtimeConfig(c, h),
		},
	}
}

// registryConfig is a directory. It holds one directory with a hosts.toml for each registry
// (mirrors, certificates).
const registryConfig = "/etc/mote/certs.d"

func runtimeConfig(c Config, h host) map[string]any {
	confDir, binDir := "/etc/cni/net.d", "/opt/cni/bin"
	if c.CNI == CNIBridge {
		confDir, binDir = c.data().CNIConfig(), c.PayloadDir
	}
	return map[string]any{
		"restrict_oom_score_adj": h.restrictOOM,
		// Each collection is one call to every shim. Only crictl stats reads the result: the
		// kubelet reads cgroups.
		"stats_collect_period": "30s",
		// With mote's own network, everything of a pod is under RunDir. CNI daemons of other
		// networks look for network namespaces in /var/run/netns.
		"netns_mounts_under_state_dir": c.CNI == CNIBridge,
		"cni": map[string]any{
			"conf_dir": confDir,
			"bin_dirs": []string{binDir},
			// This saves one program start for each pod.
			"use_internal_loopback": true,
		},
		"containerd": map[string]any{
			"default_runtime_name": "runc",
			"runtimes": map[string]any{"runc": map[string]any{
				"runtime_type": "io.containerd.runc.v2",
				"runtime_path": filepath.Join(c.PayloadDir, "containerd-shim-runc-v2"),
				"sandboxer":    "podsandbox",
				"options": map[string]any{
					"BinaryName": filepath.Join(c.PayloadDir, "runc"),
					"Root":       c.run().Runc(),
					// The shims are outside mote's own cgroup. So they survive a service manager
					// that ends all processes of mote's cgroup, and StopContainers finds them.
					"ShimCgroup":    shimCgroup,
					"SystemdCgroup": false,
				},
			}},
		},
	}
}
