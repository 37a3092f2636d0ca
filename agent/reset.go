package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

const (
	podLogs       = "/var/log/pods"
	containerLogs = "/var/log/containers"
)

// Reset removes everything that belongs to the node: containers, mounts, network, packet rules,
// cgroups, logs, the kubelet's directory, and the node's part of the data directory and the run
// directory. mote must not run on these directories. Each step can be repeated, and the record that
// the steps read is deleted last. So the next Reset finishes an interrupted one.
func Reset(ctx context.Context, c Config) error {
	f, err := readFootprint(c)
	if err != nil {
		return err
	}
	steps := []struct {
		name string
		run  func() error
	}{
		{"end containers", func() error { return killContainers(ctx, c) }},
		{"give back host ports and addresses", func() error { return detachPods(ctx, c) }},
		{"remove the bridge", func() error { return removeBridge(c, f) }},
		{"remove packet rules", func() error { return removeRules(ctx, f) }},
		{"remove cgroups", removeCgroups},
		{"remove pods' logs", func() error { return removeLogs(c, f) }},
		{"remove the kubelet's directory", func() error { return removeKubeletDir(c, f) }},
		{"remove the node's state", func() error {
			return removeTrees(c.run().Containerd(), c.run().Runc(), c.run().CNI())
		}},
		{"remove the node's data", func() error { return removeAgentDir(c) }},
	}
	for _, step := range steps {
		if err := step.run(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// detachPods makes the CNI plugins release the pods' addresses and interfaces. If a plugin fails,
// the next steps remove them anyway.
func detachPods(ctx context.Context, c Config) error {
	libcni.CacheDir = c.cniCache()
	network, err := libcni.NetworkConfFromFile(c.conflist())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the CNI configuration: %w", err)
	}
	plugins := libcni.NewCNIConfig([]string{c.PayloadDir}, nil)
	attachments, err := plugins.GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("list pods' network attachments: %w", err)
	}
	for _, attachment := range attachments {
		// NetNS is not set: the network namespaces are already gone, and the plugins only clean up
		// outside them.
		err := plugins.DelNetworkList(ctx, network, &libcni.RuntimeConf{
			ContainerID: attachment.ContainerID, IfName: attachment.IfName,
			Args: attachment.CniArgs, CapabilityArgs: attachment.CapabilityArgs,
		})
		if err != nil {
			slog.Warn("cannot detach a pod from the network", "component", "network", "sandbox", attachment.ContainerID, "err", err)
		}
	}
	return nil
}

// removeLogs removes the whole log directories if this node made them. Otherwise it removes only
// the logs of pods that this node knows.
func removeLogs(c Config, f footprint) error {
	entries, err := os.ReadDir(podLogs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list logs: %w", err)
	}
	for _, entry := range entries {
		// The name is <namespace>_<name>_<uid>.
		uid := entry.Name()[strings.LastIndex(entry.Name(), "_")+1:]
		_, err := os.Stat(filepath.Join(c.KubeletDir, "pods", uid))
		if err != nil && !slices.Contains(f.Created, podLogs) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(podLogs, entry.Name())); err != nil {
			return fmt.Errorf("remove logs: %w", err)
		}
	}
	links, err := os.ReadDir(containerLogs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list logs: %w", err)
	}
	for _, link := range links {
		path := filepath.Join(containerLogs, link.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(target, podLogs+"/") {
			continue
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove a link to removed logs: %w", err)
			}
		}
	}
	for _, dir := range []string{podLogs, containerLogs} {
		if slices.Contains(f.Created, dir) {
			if err := removeTrees(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeKubeletDir removes the kubelet's directory if mote made it, or only its content if it
// existed before. It leaves a directory of another owner.
func removeKubeletDir(c Config, f footprint) error {
	if _, err := os.Stat(filepath.Join(c.KubeletDir, ownerFile)); errors.Is(err, fs.ErrNotExist) {
		// mote was killed before it claimed the directory, or during an earlier removal.
		if slices.Contains(f.Created, c.KubeletDir) && kubeletDirOwner(c) == nil {
			return removeTrees(c.KubeletDir)
		}
		return nil
	}
	if err := kubeletDirOwner(c); err != nil {
		return err
	}
	entries, err := os.ReadDir(c.KubeletDir)
	if err != nil {
		return fmt.Errorf("list %s: %w", c.KubeletDir, err)
	}
	if err := removeDevicePlugins(f); err != nil {
		return err
	}
	// The mark goes last, so that mote still owns the directory after an interrupted removal.
	for _, entry := range entries {
		if entry.Name() != ownerFile {
			if err := removeTrees(filepath.Join(c.KubeletDir, entry.Name())); err != nil {
				return err
			}
		}
	}
	if slices.Contains(f.Created, c.KubeletDir) {
		return removeTrees(c.KubeletDir)
	}
	return removeTrees(filepath.Join(c.KubeletDir, ownerFile))
}

// removeDevicePlugins removes the directory for device plugins, which the kubelet makes even if its
// root directory is another one. It removes the parent only if this node made it and it is empty:
// the parent may belong to another kubelet by now.
func removeDevicePlugins(f footprint) error {
	if !slices.Contains(f.Created, devicePlugins) {
		return nil
	}
	if err := removeTrees(devicePlugins); err != nil {
		return err
	}
	parent := filepath.Dir(devicePlugins)
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) > 0 || !slices.Contains(f.Created, parent) {
		return nil
	}
	return removeTrees(parent)
}

// removeAgentDir removes the node's part of the data directory. The footprint goes last, when all
// else in the directory is gone.
func removeAgentDir(c Config) error {
	entries, err := os.ReadDir(c.data().Agent())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", c.data().Agent(), err)
	}
	for _, entry := range entries {
		path := filepath.Join(c.data().Agent(), entry.Name())
		if path != c.data().Footprint() {
			if err := removeTrees(path); err != nil {
				return err
			}
		}
	}
	return removeTrees(c.data().Agent())
}

// removeTrees deletes directories. It unmounts everything below them first and never deletes
// through a mount, because the content of a mount is not mote's.
func removeTrees(dirs ...string) error {
	for _, dir := range dirs {
		if err := unmountBelow(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
	}
	return nil
}
