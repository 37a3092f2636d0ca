// Package inotify knows what a cluster takes of the machine's inotify limits, and whether that is there.
//
// The limits are for all that root runs, in namespaces or not. Functions may be called from any goroutine.
package inotify

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// Instances is how many inotify instances a running cluster has: measured on an idle one with a pod, certificates that
	// Kubernetes' components watch for the most part. TestServer in test/e2e counts them.
	Instances = 32
	// fewWatches is the kernel's smallest default of watches. A cluster takes some hundred, and tools in pods take thousands.
	fewWatches = 8192

	instancesSetting = "fs.inotify.max_user_instances"
	watchesSetting   = "fs.inotify.max_user_watches"
)

// CheckInstances returns an error if a cluster would not get its inotify instances now. It cannot keep them for the cluster, so two that
// start together may both pass.
func CheckInstances() error {
	for range Instances {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			limit := "few"
			if n, err := limitOf(instancesSetting); err == nil {
				limit = strconv.FormatInt(n, 10)
			}
			return fmt.Errorf("a cluster needs %d of the %s inotify instances that this machine allows, and others have them (%w); raise the limit with: sysctl -w %s=1024",
				Instances, limit, err, instancesSetting)
		}
		defer unix.Close(fd)
	}
	return nil
}

// CheckWatches returns an error if the machine allows fewer watches than any kernel does by default.
func CheckWatches() error {
	n, err := limitOf(watchesSetting)
	if err != nil {
		return err
	}
	if n < fewWatches {
		return fmt.Errorf("this machine allows %d inotify watches, and programs in pods may need more; raise the limit with: sysctl -w %s=65536", n, watchesSetting)
	}
	return nil
}

// limitOf reads a limit as sysctl names it.
func limitOf(setting string) (int64, error) {
	data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(setting, ".", "/"))
	if err != nil {
		return 0, fmt.Errorf("read limit: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read limit %s: %w", setting, err)
	}
	return n, nil
}
