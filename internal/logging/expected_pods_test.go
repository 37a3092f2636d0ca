package logging

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLinesOfDeletedPods checks lines of real clusters: those about objects that were deleted
// meanwhile are lowered, and the same messages with another error stay.
func TestLinesOfDeletedPods(t *testing.T) {
	const (
		gone        = `pods "web-0" not found`
		terminating = `pods "web-0" is forbidden: unable to create new content in namespace shop because it is being terminated`
		container   = `rpc error: code = NotFound desc = an error occurred when try to find container "86cc300b": not found`
		file        = `failed to read memory.limit_in_bytes for cgroup /sys/fs/cgroup/memory/pod4c93: no such file or directory`
	)
	for _, c := range []struct {
		component, message, lowered, stays string
	}{
		{
			"kubelet", "Failed to get status for pod",
			`pods "web-0" is forbidden: User "system:node:n1" cannot get resource "pods" in API group "" in the namespace "shop": no relationship found between node 'n1' and this object`,
			`pods "web-0" is forbidden: User "system:node:n1" cannot get resource "pods" in API group "" in the namespace "shop"`,
		},
		{
			"kubernetes", "Failed to watch",
			`failed to list *v1.ConfigMap: configmaps "settings" is forbidden: User "system:node:n1" cannot list resource "configmaps" in API group "" in the namespace "shop": no relationship found between node 'n1' and this object`,
			`failed to list *v1.ConfigMap: configmaps is forbidden: User "system:node:n1" cannot list resource "configmaps" in API group "" in the namespace "shop"`,
		},
		{"kubelet", "Failed to update status for pod", `failed to patch status "{\"status\":{}}" for pod "shop"/"web-0": ` + gone, `failed to patch status "{}" for pod "shop"/"web-0": context deadline exceeded`},
		{"containerd", `ContainerStatus for "86cc300b" failed`, container, "rpc error: code = DeadlineExceeded desc = context deadline exceeded"},
		{"kubernetes", "ContainerStatus from runtime service failed", container, "rpc error: code = DeadlineExceeded desc = context deadline exceeded"},
		{"kubelet", "failed to read memory cgroup config for the pod", file, "permission denied"},
		{"kubelet", "failed to read memory cgroup limits for the pod", file, "permission denied"},
		{"containerd", "collecting metrics for 3cce9dd8", "ttrpc: closed", "context deadline exceeded"},
		{"containerd", "collecting metrics for 3cce9dd8", "cgroups: cgroup deleted", "permission denied"},
		{
			"containerd", "failed sending message on channel", "write unix /run/mote/sockets/containerd.sock.ttrpc->@: write: broken pipe",
			"write unix /run/mote/sockets/containerd.sock.ttrpc->@: i/o timeout",
		},
		{"kubernetes", "ExecSync cmd from runtime service failed", "rpc error: code = Canceled desc = context canceled", "rpc error: code = Unknown desc = failed to exec in container"},
		{"kube-scheduler", "Plugin Failed", gone, `pods "web-0" is forbidden: User "system:kube-scheduler" cannot create resource "pods/binding"`},
		{"kube-scheduler", "Plugin Failed", terminating, "etcdserver: request timed out"},
		{"kube-scheduler", "Error scheduling pod; retrying", `running Bind plugin "DefaultBinder": ` + gone, `persistentvolumeclaim "data" not found`},
		{
			"kubernetes", "Server rejected event (will not retry!)",
			`events.events.k8s.io "web-0.18ec" is forbidden: unable to create new content in namespace shop because it is being terminated`, `events.events.k8s.io "web-0.18ec" is invalid`,
		},
		{
			"kube-controller-manager", "Deletion of namespace failed",
			"failed to delete pods for namespace: shop, err: unexpected items still remain in namespace: shop for gvr: /v1, Resource=pods",
			"unable to retrieve the complete list of server APIs: example.com/v1: stale GroupVersion discovery",
		},
		{"kubernetes", "Error on socket receive", "read tcp 10.42.0.1:10250->10.42.0.1:55642: use of closed network connection", "connection reset by peer"},
	} {
		var b bytes.Buffer
		setUp(t, &b, nil, "info", "json")
		log := slog.With("component", c.component)
		log.Error(c.message, "plugin", "DefaultBinder", "err", errors.New(c.lowered))
		require.Empty(t, lines(t, &b), "%s: %s", c.message, c.lowered)
		log.Error(c.message, "plugin", "DefaultBinder", "err", errors.New(c.stays))
		require.Len(t, lines(t, &b), 1, "%s: %s", c.message, c.stays)
	}
}
