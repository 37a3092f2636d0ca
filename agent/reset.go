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

// Reset removes all that is the node's: containers, mounts, network, packet rules, cgroups, logs, the
// kubelet's directory, and the node's part of the data and run directories. mote must not be running on
// them. Each step can be repeated and the record that the steps read is deleted last, so an interrupted
// Reset is finished by the next.
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

// detachPods tells the CNI plugins that the pods are gone. Should a plugin fail, its pod's addresses and
// interfaces are removed anyway by the next steps.
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
		// Without NetNS: the namespaces are gone already, and only what is outside them is cleaned.
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

// removeLogs removes the whole log directories when they were made by this node, and otherwise the logs of
// pods that this node knows.
func removeLogs(c Config, f footprint) error {
	entries, err := os.ReadDir(podLogs)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list logs: %w", err)
	}
	for _, entry := range entries {
		// <namespace>_<name>_<uid>
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

// removeKubeletDir removes the kubelet's directory if it is ours, or what is in it if it was there before.
func removeKubeletDir(c Config, f footprint) error {
	if _, err := os.Stat(filepath.Join(c.KubeletDir, ownerFile)); errors.Is(err, fs.ErrNotExist) {
		// Killed before the directory was claimed, or in the midst of this.
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
	// The mark goes last, so that an interrupted removal is still ours.
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

// removeDevicePlugins is for a kubelet with another root directory, which makes this one all the same. Its
// parent may have become another kubelet's since.
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

// removeAgentDir keeps the record of what to remove until all else in the directory is gone.
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

// removeTrees deletes directories, never through a mount: what is mounted below is not ours to delete.
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
