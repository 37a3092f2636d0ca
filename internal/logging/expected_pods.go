package logging

// expectedOfRemovals returns the expectations about removals: pods, containers and namespaces are
// deleted all the time, and upstream components that are working on one of them then log an error,
// which they handle.
func expectedOfRemovals() []Expectation {
	const (
		listed   = "The container was removed between the kubelet's list of all containers and its look at this one. Upstream's comment: that is normal."
		noCgroup = "The pod has ended and its cgroup is removed; the kubelet reads the values once more for the pod's last status."
		counted  = "The container ended while containerd read its metrics."
		unbound  = "The pod was deleted before it was bound to the node."
		stopped  = "The namespace is being deleted, and takes no new objects; the object would have been deleted next."
		ended    = "A command in a container (a probe, a hook) was under way when its pod ended."
	)
	const terminating = "because it is being terminated"
	return []Expectation{
		{
			"kubelet", "Failed to get status for pod", "no relationship found between node ", Always,
			"The pod is deleted. The node authorizer forgets it at once and refuses the request; the kubelet expects \"not found\" and lets go of the pod in either case.",
			sourceKubernetes + "pkg/kubelet/status/status_manager.go#L1164", "", "",
		},
		{
			"kubernetes", "Failed to watch", "no relationship found between node ", Always,
			"The kubelet still watches a Secret or ConfigMap of a pod that is deleted, which the node authorizer has forgotten, and stops then.",
			sourceStaging + "client-go/tools/cache/reflector.go#L227", "", "",
		},
		{
			"kubelet", "Failed to update status for pod", "\" not found", Always,
			"The pod was deleted between the kubelet's look at it and its write.",
			sourceKubernetes + "pkg/kubelet/status/status_manager.go#L1187", "", "",
		},
		{
			"containerd", "ContainerStatus for \"*", "an error occurred when try to find container ", Always, listed,
			sourceContainerd + "internal/cri/instrument/instrumented_service.go#L233", "", "",
		},
		{
			"kubernetes", "ContainerStatus from runtime service failed", "code = NotFound ", Always, listed,
			sourceKubernetes + "pkg/kubelet/kuberuntime/kuberuntime_container.go#L662", "", "",
		},
		{
			"kubelet", "failed to read memory cgroup config for the pod", "no such file or directory", Always, noCgroup,
			sourceKubernetes + "pkg/kubelet/kubelet_pods.go#L2193", "", "",
		},
		{
			"kubelet", "failed to read memory cgroup limits for the pod", "no such file or directory", Always, noCgroup,
			sourceKubernetes + "pkg/kubelet/kubelet_pods.go#L2198", "", "",
		},
		{
			"containerd", "collecting metrics for *", "cgroups: cgroup deleted", Always, counted,
			sourceContainerd + "plugins/services/tasks/local.go#L704", "", "",
		},
		{
			"containerd", "collecting metrics for *", "ttrpc: closed", Always, counted,
			sourceContainerd + "plugins/services/tasks/local.go#L704", "", "",
		},
		{
			"containerd", "failed sending message on channel", "broken pipe", Always,
			"The shim of a container that has ended told containerd its last event, and was gone before the answer.",
			"https://github.com/containerd/ttrpc/blob/v1.2.8/server.go#L529", "", "",
		},
		{
			"kubernetes", "ExecSync cmd from runtime service failed", "code = Canceled ", Always, ended,
			sourceStaging + "cri-client/pkg/remote_runtime.go#L636", "", "",
		},
		{
			"kube-scheduler", "Plugin Failed", "\" not found", Always, unbound,
			sourceKubernetes + "pkg/scheduler/framework/runtime/framework.go#L1805", "plugin", "DefaultBinder",
		},
		{
			"kube-scheduler", "Plugin Failed", terminating, Always, stopped,
			sourceKubernetes + "pkg/scheduler/framework/runtime/framework.go#L1805", "plugin", "DefaultBinder",
		},
		{
			"kube-scheduler", "Error scheduling pod; retrying", "running Bind plugin \"DefaultBinder\": pods \"", Always,
			"The same error once more, behind \"Plugin Failed\", which stays an error where the pod was not deleted.",
			sourceKubernetes + "pkg/scheduler/schedule_one.go#L1243", "", "",
		},
		{
			"kubernetes", "Server rejected event (will not retry!)", terminating, Always, stopped,
			sourceStaging + "client-go/tools/events/event_broadcaster.go#L270", "", "",
		},
		{
			"kube-controller-manager", "Deletion of namespace failed", "unexpected items still remain in namespace: ", Always,
			"Pods of the namespace have not ended yet; the controller tries again.",
			sourceKubernetes + "pkg/controller/namespace/namespace_controller.go#L164", "", "",
		},
	}
}

// expectedOfPods returns the expectations for lines that upstream logs as errors about healthy
// pods.
func expectedOfPods() []Expectation {
	return []Expectation{
		{
			"kubelet", "Missing actuated pod level resource record", "", Always,
			"The kubelet keeps such a record of pods with resources of their own only, and looks for that of every pod.",
			sourceKubernetes + "pkg/kubelet/kuberuntime/kuberuntime_manager.go#L1428", "", "",
		},
		{
			"kubelet", "Hostname for pod was too long, truncated it", "", Always,
			"A pod's name may have 253 characters, a host's 63: the first 63 are the pod's host name.",
			sourceKubernetes + "pkg/kubelet/kubelet_pods.go#L563", "", "",
		},
		{
			"kubernetes", "Error on socket receive", "use of closed network connection", Always,
			"A command, attachment or port forward over a WebSocket has ended, and the kubelet has closed the connection that it still reads from.",
			sourceStaging + "streaming/pkg/httpstream/wsstream/conn.go#L353", "", "",
		},
	}
}
