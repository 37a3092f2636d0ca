package series

import (
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// Component is a component that has a metrics endpoint of its own.
type Component string

// Components, by the usual names of Prometheus jobs.
const (
	APIServer         Component = "kube-apiserver"
	ControllerManager Component = "kube-controller-manager"
	Scheduler         Component = "kube-scheduler"
	Kubelet           Component = "kubelet"
	KubeProxy         Component = "kube-proxy"
	CoreDNS           Component = "coredns"
)

// everywhere reports whether a family describes the process. Each endpoint shows these families, as
// the endpoint of a separate process would: dashboards read memory, processor time and start time
// by job.
func everywhere(family string) bool {
	return strings.HasPrefix(family, "go_") || strings.HasPrefix(family, "process_")
}

// owners maps components to prefixes of family names; the longest prefix that matches decides.
// Names and components come from upstream's list,
// k8s.io/kubernetes/test/instrumentation/documentation/documentation-list.yaml, which owner_test.go
// compares. Some families exist in every upstream component and once in one process. They belong to
// kube-apiserver, the endpoint that every Prometheus scrapes.
func owners() map[Component][]string {
	return map[Component][]string{
		APIServer: {
			"aggregator_", "apiextensions_", "apiserver_", "authenticated_user_", "authentication_", "authorization_", "etcd_",
			"field_validation_", "grpc_client_", "kube_apiserver_", "node_authorizer_", "pod_security_", "serviceaccount_", "watch_cache_",
			// Families of all components.
			"cardinality_enforcement_", "disabled_metrics_", "hidden_metrics_", "informer_", "kubernetes_", "leader_election_",
			"registered_metrics_", "rest_client_", "version_info", "workqueue_",
			// Families of mote, its SQL datastores, and addons without an endpoint.
			"kine_", "metrics_server_", "mote_",
		},
		ControllerManager: {
			"attach_detach_controller_", "attachdetach_controller_", "clustertrustbundle_publisher_", "cronjob_controller_",
			"daemonset_controller_", "device_taint_eviction_controller_", "endpoint_slice_", "ephemeral_volume_controller_",
			"garbagecollector_controller_", "horizontal_pod_autoscaler_controller_", "job_controller_", "node_collector_", "node_ipam_controller_",
			"pod_gc_collector_", "pv_collector_", "replicaset_controller_", "resourceclaim_controller_", "retroactive_storageclass_",
			"root_ca_cert_publisher_", "running_managed_controllers", "selinux_warning_controller_", "statefulset_controller_",
			"storage_count_attachable_volumes_", "taint_eviction_controller_", "ttl_after_finished_controller_",
			"volume_operation_errors_", "volume_operation_total_errors",
			// Families of the cloud controller manager, whose controllers the controller manager
			// registers too.
			"cloud_provider_", "node_controller_", "route_controller_", "service_controller_",
		},
		Scheduler: {"scheduler_", "kube_pod_resource_"},
		Kubelet: {
			"csi_operations_", "dra_", "force_cleaned_failed_volume_", "kubelet_", "plugin_manager_", "reconstruct_volume_", "storage_operation_",
			"volume_manager_", "volume_operation_",
		},
		KubeProxy: {"kubeproxy_"},
		CoreDNS:   {"coredns_"},
	}
}

// Owner returns the component that shows a family. known is false for a family that is missing in
// the table: kube-apiserver shows it, so that nothing is lost.
func Owner(family string) (owner Component, known bool) {
	owner = APIServer
	longest := 0
	for component, prefixes := range owners() {
		for _, prefix := range prefixes {
			if len(prefix) > longest && strings.HasPrefix(family, prefix) {
				owner, longest = component, len(prefix)
			}
		}
	}
	return owner, longest > 0
}

// splitBy returns the function that finds the owner of a series by its label "name", for families
// that several components fill with names of their own. It returns nil for all other families.
func splitBy(family string) func(name string) Component {
	switch {
	case strings.HasPrefix(family, "workqueue_"):
		return queueOwner
	case strings.HasPrefix(family, "kubernetes_healthcheck"):
		return CheckOwner
	}
	return nil
}

// queueOwner returns the owner of a work queue. It knows the queues of kube-apiserver and the
// kubelet. All others belong to the controller manager, which has at least one queue for each
// controller.
func queueOwner(name string) Component {
	switch name {
	case "APIServiceRegistrationController", "DiscoveryController", "LocalAvailabilityController", "RemoteAvailabilityController",
		"admission_quota_controller", "autoregister", "cluster_authentication_trust_controller", "crdEstablishing",
		"crd_autoregistration_controller", "crd_finalizer", "crd_naming_condition_controller", "crd_openapi_controller",
		"crd_openapi_v3_controller", "discovery-manager", "encryption-provider-config-automatic-reload-controller",
		"ipallocator.k8s.io", "kubernetes_api_approval_conformant_condition_controller", "legacy_token_tracking_controller",
		"non_structural_schema_condition_controller", "open_api_aggregation_controller", "open_api_v3_aggregation_controller",
		"priority_and_fairness_config_queue":
		return APIServer
	case "kubelet_log_rotate_manager":
		return Kubelet
	}
	if strings.HasPrefix(name, "Dynamic") { // certificate files, of every component that serves TLS
		return APIServer
	}
	return ControllerManager
}

// CheckOwner returns the component of the health check called name. "ping", "log" and "shutdown"
// belong to several components, and are counted together.
func CheckOwner(name string) Component {
	switch {
	case name == "sched-handler-sync":
		return Scheduler
	case name == "syncloop":
		return Kubelet
	case strings.HasSuffix(name, "-controller") && !strings.Contains(name, "/"):
		return ControllerManager
	}
	return APIServer
}

// only returns the series of a family that component c shows, or nil if there are none. It does not
// change the family.
func only(c Component, family *dto.MetricFamily) *dto.MetricFamily {
	if everywhere(family.GetName()) {
		return family
	}
	split := splitBy(family.GetName())
	if split == nil {
		if owner, _ := Owner(family.GetName()); owner == c {
			return family
		}
		return nil
	}
	own := &dto.MetricFamily{Name: family.Name, Help: family.Help, Type: family.Type, Unit: family.Unit}
	for _, metric := range family.GetMetric() {
		name := ""
		for _, label := range metric.GetLabel() {
			if label.GetName() == "name" {
				name = label.GetValue()
			}
		}
		if split(name) == c {
			own.Metric = append(own.Metric, metric)
		}
	}
	if len(own.Metric) == 0 {
		return nil
	}
	return own
}
