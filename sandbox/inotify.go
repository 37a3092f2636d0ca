package sandbox

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// inotifyInstances is what one cluster takes of the limit fs.inotify.max_user_instances, which is
// 128 on most hosts and shared by all that root runs, namespaces or not. Measured: 28 (certificates
// that Kubernetes' parts watch, CNI configuration, containers).
const inotifyInstances = 28

// checkInotify says now what a part of the cluster would say much later and less clearly. It cannot
// keep the instances for the cluster, so two sandboxes that start together may both pass.
func checkInotify() error {
	for range inotifyInstances {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return inotifyError(err)
		}
		defer unix.Close(fd)
	}
	return nil
}

func inotifyError(err error) error {
	const name = "fs.inotify.max_user_instances"
	limit, readErr := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	if readErr != nil {
		return fmt.Errorf("cannot start another cluster: inotify: %w; raise %s", err, name)
	}
	return fmt.Errorf("cannot start another cluster: it needs %d of the %s inotify instances that this host allows, and others have them; raise the limit with: sysctl -w %s=1024",
		inotifyInstances, strings.TrimSpace(string(limit)), name)
}
