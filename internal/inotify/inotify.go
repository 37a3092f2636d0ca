// Package inotify checks whether the machine's inotify limits leave enough for a cluster.
//
// The limits apply to all processes of root, in namespaces or not. Functions may be called from any
// goroutine.
package inotify

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// Instances is the number of inotify instances of a running cluster: measured on an idle one
	// with a pod. Most of them belong to the certificate files that Kubernetes' components watch.
	// TestServer in test/e2e counts them.
	Instances = 32
	// fewWatches is the kernel's smallest default number of watches. A cluster takes some hundred,
	// and tools in pods take thousands.
	fewWatches = 8192

	instancesSetting = "fs.inotify.max_user_instances"
	watchesSetting   = "fs.inotify.max_user_watches"
)

// CheckInstances returns an error if a cluster could not get its inotify instances now. It cannot
// reserve them, so two clusters that start together may both pass.
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

// CheckWatches returns an error if the machine allows fewer watches than the default of any kernel.
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

// limitOf reads a limit by its sysctl name.
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
