package logging

import (
	"log/slog"
	"strings"
)

// Phase is a phase of the process's life; phases can be combined.
type Phase uint32

const (
	// Starting lasts until startGrace after Started.
	Starting Phase = 1 << iota
	// Running follows Starting.
	Running
	// Stopping begins with the signal.
	Stopping
	// Always combines all phases.
	Always = Starting | Running | Stopping
)

// String returns the names of the phases, for the reference.
func (p Phase) String() string {
	switch p {
	case Always:
		return "always"
	case Starting:
		return "start"
	case Stopping:
		return "stop"
	case Starting | Stopping:
		return "start, stop"
	}
	return "running"
}

// Expectation describes a warning or error of an upstream component that a healthy cluster logs
// too. It becomes a debug record during some phases. The same message with another error keeps its
// level, and so does the same line in another phase.
type Expectation struct {
	Component string
	// Message is the whole message, or its beginning if it ends with "*". A bare "*" is for a stop
	// only.
	Message string
	// Err is a substring of the error; "" if the message is enough.
	Err string
	// During is the phase in which the line is expected.
	During Phase
	// Reason explains why the line appears and why no action is needed.
	Reason string
	// Source is the place where upstream logs it, or upstream's report of the bug.
	Source string
	// Key and Value are an attribute that the record must have, if Key is not "".
	Key, Value string
}

func (e Expectation) matches(r slog.Record, err string) bool {
	if beginning, ok := strings.CutSuffix(e.Message, "*"); ok {
		if !strings.HasPrefix(r.Message, beginning) {
			return false
		}
	} else if r.Message != e.Message {
		return false
	}
	if !strings.Contains(err, e.Err) {
		return false
	}
	found := e.Key == ""
	r.Attrs(func(a slog.Attr) bool {
		found = found || a.Key == e.Key && a.Value.String() == e.Value
		return !found
	})
	return found
}

func expectedByComponent() map[string][]Expectation {
	table := make(map[string][]Expectation)
	for _, e := range Expected() {
		table[e.Component] = append(table[e.Component], e)
	}
	return table
}

const (
	sourceKubernetes = "https://github.com/kubernetes/kubernetes/blob/v1.36.3/"
	sourceStaging    = sourceKubernetes + "staging/src/k8s.io/"
	sourceContainerd = "https://github.com/containerd/containerd/blob/v2.3.7/"
)

// Expected returns the table of all expectations, by component. docs/reference/log.md shows it.
func Expected() []Expectation {
	var all []Expectation
	for _, part := range [][]Expectation{
		expectedOfControlPlane(), expectedOfMetrics(), expectedOfKubelet(), expectedOfPods(), expectedOfRemovals(), expectedOfNode(), expectedOfStop(),
	} {
		all = append(all, part...)
	}
	return all
}

func expectedOfControlPlane() []Expectation {
	return []Expectation{
		{
			"kubernetes", "The manifest file is empty, ignoring.", "", Always,
			"Each component that is not given --allow-metric-labels-manifest logs it when it starts.",
			sourceStaging + "component-base/metrics/options.go#L205", "", "",
		},
		{
			"kube-apiserver", "Found stale data, removed previous endpoints on kubernetes service, apiserver didn't exit successfully previously", "", Starting,
			"The reconciler of type master-count, which mote uses, reports the absence of old endpoints as their removal, also at the first start.",
			sourceKubernetes + "pkg/controlplane/reconcilers/instancecount.go#L145", "", "",
		},
		{
			"kubernetes", "Failed to ensure lease exists, will retry", "namespaces \"kube-system\" not found", Starting,
			"The apiserver's own lease is written beside the namespace that it lies in, at the first start; the next try is 200 ms later.",
			sourceStaging + "component-helpers/apimachinery/lease/controller.go#L201", "", "",
		},
		{
			"kube-apiserver", "Error while syncing ConfigMap", "namespaces \"kube-system\" not found", Starting,
			"A ConfigMap of the apiserver is written beside the namespace that it lies in, at the first start, and tried again.",
			sourceKubernetes + "pkg/controlplane/controller/legacytokentracking/controller.go#L156", "", "",
		},
		{
			"kube-controller-manager", "Unhandled Error", "is not as new as written version: ", Always,
			"A controller found its cache older than its own last write, and waits for its cache: that is a retry by design.",
			sourceKubernetes + "pkg/controller/util/consistency/consistency.go#L48", "", "",
		},
		{
			"kube-controller-manager", "Error syncing StatefulSet, requeuing", "is not as new as written version: ", Always,
			"As above.",
			sourceKubernetes + "pkg/controller/statefulset/stateful_set.go#L509", "", "",
		},
		{
			"kubernetes", "Failed to watch", "the server could not find the requested resource", Always,
			"The garbage collector and the quota controller do not stop the informers of a CustomResourceDefinition that was deleted; each asks every 30 s until mote is started again.",
			"https://github.com/kubernetes/kubernetes/issues/79610", "type", "*v1.PartialObjectMetadata",
		},
	}
}

// expectedOfMetrics returns the expectations about the metrics API: its APIService is in the
// datastore from the previous start. Its server, an addon, starts after the apiserver, and after
// the controllers that read the list of all APIs.
func expectedOfMetrics() []Expectation {
	const (
		api    = "v1beta1.metrics.k8s.io"
		stale  = "unable to retrieve the complete list of server APIs: metrics.k8s.io/v1beta1: stale GroupVersion discovery: metrics.k8s.io/v1beta1"
		reason = "The APIService of the metrics API is known from the last start before the addon serves it."
	)
	return []Expectation{
		{
			"kube-apiserver", "Unhandled Error", api + " failed with: failing or missing response from https://", Starting | Stopping, reason,
			sourceStaging + "kube-aggregator/pkg/controllers/status/remote/remote_available_controller.go#L333", "", "",
		},
		{
			"kube-apiserver", "Unhandled Error", "Error updating APIService \"" + api + "\" with err: failed to download " + api, Starting | Stopping, reason,
			sourceStaging + "kube-aggregator/pkg/controllers/openapi/controller.go#L157", "", "",
		},
		{
			"kube-apiserver", "Unhandled Error", "loading OpenAPI spec for \"" + api + "\" failed with: ", Starting | Stopping, reason,
			sourceStaging + "kube-aggregator/pkg/controllers/openapiv3/controller.go#L123", "", "",
		},
		{
			"kube-controller-manager", "Unable to get all supported resources from server", stale, Starting, reason,
			sourceKubernetes + "pkg/controller/namespace/deletion/namespaced_resources_deleter.go#L164", "", "",
		},
		{
			"kube-controller-manager", "Initial discovery check failure, continuing and counting on future sync update", stale, Starting, reason,
			sourceKubernetes + "pkg/controller/resourcequota/resource_quota_controller.go#L175", "", "",
		},
		{
			"kube-controller-manager", "Error during resource discovery", stale, Starting, reason,
			sourceKubernetes + "pkg/controller/resourcequota/resource_quota_controller.go#L460", "", "",
		},
		{
			"kubernetes", "Failed to scrape node", "connection refused", Starting,
			"The metrics API scrapes the kubelet for the first time while that starts.",
			"https://github.com/kubernetes-sigs/metrics-server/blob/v0.9.0/pkg/scraper/scraper.go#L149", "", "",
		},
	}
}

func expectedOfKubelet() []Expectation {
	const unregistered = "The kubelet's loops begin before it has registered its node, and try again."
	return []Expectation{
		{
			"kubelet", "Skipping pod synchronization", "container runtime status check may not have completed yet", Starting,
			"The loop of the pods begins before the first look at containerd, and tries again 100 ms later.",
			sourceKubernetes + "pkg/kubelet/kubelet.go#L2646", "", "",
		},
		{
			"kubelet", "Error getting the current node from lister", " not found", Starting, unregistered,
			sourceKubernetes + "pkg/kubelet/kubelet_node_status.go#L396", "", "",
		},
		{
			"kubelet", "Error updating node status, will retry", "error getting node ", Starting, unregistered,
			sourceKubernetes + "pkg/kubelet/kubelet_node_status.go#L479", "", "",
		},
		{
			"kubelet", "Unable to register mirror pod because node is not registered yet", " not found", Starting, unregistered,
			sourceKubernetes + "pkg/kubelet/kubelet.go#L3516", "", "",
		},
		{
			"kubelet", "Failed to get node when trying to set owner ref to the node lease", " not found", Starting, unregistered,
			sourceKubernetes + "pkg/kubelet/util/nodelease.go#L50", "", "",
		},
		{
			"kubelet", "Eviction manager: failed to get summary stats", "failed to get node info: node ", Starting, unregistered,
			sourceKubernetes + "pkg/kubelet/eviction/eviction_manager.go#L297", "", "",
		},
		{
			"kubelet", "Image garbage collection failed once. Stats initialization may not have completed yet", "invalid capacity 0 on image filesystem", Starting,
			"The first round looks for the size of the file system before the kubelet has measured it.",
			sourceKubernetes + "pkg/kubelet/kubelet.go#L1725", "", "",
		},
		{
			"kubelet", "Failed to read data from checkpoint", "checkpoint is not found", Starting,
			"There is no checkpoint of devices before a pod uses one.",
			sourceKubernetes + "pkg/kubelet/cm/devicemanager/manager.go#L525", "", "",
		},
		{
			"kubelet", "eviction manager: failed to check if we have separate container filesystem. Ignoring.", "no imagefs label for configured runtime", Starting,
			"Upstream's comment: this is common where images and containers are on one file system.",
			sourceKubernetes + "pkg/kubelet/eviction/eviction_manager.go#L272", "", "",
		},
		{
			"kube-proxy", "Failed to list existing nftables objects", "No such file or directory\nlist table ip", Starting,
			"The first round looks for the tables that it makes.",
			sourceKubernetes + "pkg/proxy/nftables/proxier.go#L1169", "", "",
		},
	}
}

func expectedOfNode() []Expectation {
	return []Expectation{
		{
			"containerd", "failed check for fsverity support", "enable fsverity failed: ", Starting,
			"The file system of the data directory has no fs-verity, which containerd uses where it is there.",
			sourceContainerd + "plugins/content/local/store.go#L99", "", "",
		},
		{
			"containerd", "failed to load cni during init, please check CRI plugin status before setting up network for pods", "no network config found", Starting,
			"containerd starts beside the pod network; mote writes the configuration when the packet rules are in place, and no pod starts before.",
			sourceContainerd + "internal/cri/server/cni_conf_syncer.go#L73", "", "",
		},
		{
			"containerd", "reconcile", "database not open", Stopping,
			"The loop that restarts containers of other clients than Kubernetes looks once more after the database is closed.",
			sourceContainerd + "plugins/restart/monitor.go#L96", "", "",
		},
	}
}

// expectedOfStop returns the expectations for a stop: upstream components do not wait for all of
// their loops when their context ends.
func expectedOfStop() []Expectation {
	const (
		cut  = "A loop that was cut off in a request when the process stopped."
		gone = "A loop asked once more after containerd had stopped."
	)
	var all []Expectation
	for _, name := range []string{"kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "kubernetes"} {
		all = append(all, Expectation{name, "*", "context canceled", Stopping, cut, sourceKubernetes, "", ""})
	}
	for _, name := range []string{"kubelet", "kubernetes"} {
		all = append(all, Expectation{name, "*", "containerd.sock: connect: no such file or directory", Stopping, gone, sourceKubernetes, "", ""})
	}
	return all
}
