package settings

import "github.com/mote-k8s/mote/internal/layout"

// Sections of the table, in the order of the help and the reference.
const (
	sectionFiles    = "Files"
	sectionStore    = "Datastore"
	sectionAPI      = "API"
	sectionNode     = "Node"
	sectionNetwork  = "Network"
	sectionAddons   = "Addons"
	sectionSecurity = "Security"
	sectionUpstream = "Arguments of the parts"
	sectionLog      = "Log"
)

// Setting is a row of the table.
type Setting struct {
	// Name is the flag without dashes and the key in a file; Env returns the variable.
	Name, Section, Help string
	// Default is the value of a setting that is not set; DefaultHelp describes it when it is
	// derived at the start instead.
	Default, DefaultHelp string
	// Verbs lists the verbs that take the setting as a flag; so do the verbs below them. If it is
	// empty, only server takes the setting.
	Verbs []string

	// value binds the row to its field in Settings.
	value func(*Settings) value
}

// Table returns every setting, by section.
func Table() []Setting {
	return []Setting{
		{
			Name: "data-dir", Section: sectionFiles, Default: layout.DefaultData,
			Help:  "directory for everything that lasts: state, keys, images, containers",
			Verbs: []string{"server", "status", "check", "stop", "reset", "uninstall", "datastore", "certs", "kubeconfig"},
			value: func(s *Settings) value { return scalar(&s.DataDir, "path", absolutePath) },
		},
		{
			Name: "run-dir", Section: sectionFiles, Default: layout.DefaultRun,
			Help:  "directory for sockets and what need not outlive a reboot",
			Verbs: []string{"server", "status", "logs", "check", "image", "stop", "reset", "uninstall", "datastore"},
			value: func(s *Settings) value { return scalar(&s.RunDir, "path", absolutePath) },
		},
		{
			Name: "kubelet-dir", Section: sectionFiles, Default: layout.DefaultKubelet,
			Help:  "the kubelet's directory: pods' volumes, plugins' sockets",
			Verbs: []string{"server", "check", "stop", "reset", "uninstall"},
			value: func(s *Settings) value { return scalar(&s.KubeletDir, "path", absolutePath) },
		},
		{
			Name: "image-dir", Section: sectionFiles, DefaultHelp: "images in data-dir",
			Help:  "image archives in it are imported, and pinned for as long as they are there",
			value: func(s *Settings) value { return scalar(&s.ImageDir, "path", absolutePath) },
		},
		{
			Name: "write-kubeconfig", Section: sectionFiles, DefaultHelp: "none",
			Help:  "write a further copy of the administrator's kubeconfig to this file, mode 0600",
			Verbs: []string{"server", "certs"},
			value: func(s *Settings) value { return scalar(&s.WriteKubeconfig, "path", absolutePath) },
		},

		{
			Name: "datastore-endpoint", Section: sectionStore, Default: "bolt",
			Help: "what keeps the state: bolt, sqlite, sqlite:///FILE, or the URL of PostgreSQL, MySQL, NATS or etcd; " +
				"one with a password belongs into the file or the environment, as all users see flags",
			Verbs: datastoreVerbs(),
			value: func(s *Settings) value { return scalar(&s.DatastoreEndpoint, "endpoint", anyText) },
		},
		{
			Name: "datastore-cafile", Section: sectionStore, DefaultHelp: "the system's authorities",
			Help:  "certificate authority of the datastore's server",
			Verbs: datastoreVerbs(),
			value: func(s *Settings) value { return scalar(&s.DatastoreCAFile, "path", absolutePath) },
		},
		{
			Name: "datastore-certfile", Section: sectionStore, DefaultHelp: "none",
			Help:  "our certificate for the datastore's server",
			Verbs: datastoreVerbs(),
			value: func(s *Settings) value { return scalar(&s.DatastoreCertFile, "path", absolutePath) },
		},
		{
			Name: "datastore-keyfile", Section: sectionStore, DefaultHelp: "none",
			Help:  "key of datastore-certfile",
			Verbs: datastoreVerbs(),
			value: func(s *Settings) value { return scalar(&s.DatastoreKeyFile, "path", absolutePath) },
		},
		{
			Name: "datastore-quota", Section: sectionStore, Default: "8Gi",
			Help:  "how much bolt may hold, in bytes or as 500Mi, 8Gi; over it, only deletions are taken until there is room",
			Verbs: datastoreVerbs(),
			value: func(s *Settings) value { return scalar(&s.DatastoreQuota, "size", size) },
		},
		{
			Name: "datastore-volatile", Section: sectionStore, Default: "leases",
			Help: "what bolt keeps in memory, so that a crash may undo the last of it: none; leases, by which nodes and apiservers " +
				"show that they live; events, those leases and all events",
			Verbs: datastoreVerbs(),
			value: func(s *Settings) value { return choice(&s.DatastoreVolatile, "none", "leases", "events") },
		},
		{
			Name: "snapshot-schedule", Section: sectionStore, Default: "0 */12 * * *",
			Help:  "when the cluster's state is saved to a snapshot, in cron's syntax; off never does",
			Verbs: []string{"server"},
			value: func(s *Settings) value { return scalar(&s.SnapshotSchedule, "schedule", schedule) },
		},
		{
			Name: "snapshot-retention", Section: sectionStore, Default: "5",
			Help:  "how many snapshots are kept of those that have no name",
			Verbs: []string{"server", "datastore snapshot prune"},
			value: func(s *Settings) value { return scalar(&s.SnapshotRetention, "number", positive) },
		},
		{
			Name: "snapshot-dir", Section: sectionStore, DefaultHelp: "datastore/snapshots in data-dir",
			Help:  "directory of the snapshots",
			Verbs: []string{"server", "datastore status", "datastore snapshot"},
			value: func(s *Settings) value { return scalar(&s.SnapshotDir, "path", absolutePath) },
		},
		{
			Name: "snapshot-recipient", Section: sectionStore, DefaultHelp: "not encrypted",
			Help: "age public key (age1...) for which snapshots are encrypted; the private key is needed to restore them, and " +
				"this machine need not have it",
			Verbs: []string{"server", "datastore snapshot save"},
			value: func(s *Settings) value { return list(&s.SnapshotRecipients, "key", recipient) },
		},

		{
			Name: "https-listen-address", Section: sectionAPI, Default: "0.0.0.0",
			Help:  "address on which kube-apiserver listens",
			Verbs: []string{"server", "check"},
			value: func(s *Settings) value { return scalar(&s.HTTPSListenAddress, "address", address) },
		},
		{
			Name: "https-listen-port", Section: sectionAPI, Default: "6443",
			Help:  "port on which kube-apiserver listens",
			Verbs: []string{"server", "check"},
			value: func(s *Settings) value { return scalar(&s.HTTPSListenPort, "port", port) },
		},
		{
			Name: "tls-san", Section: sectionAPI,
			Help:  "further name or address for kube-apiserver's certificate",
			value: func(s *Settings) value { return list(&s.TLSSANs, "name", hostOrAddress) },
		},
		{
			Name: "cluster-name", Section: sectionAPI, DefaultHelp: "mote- and the node's name",
			Help:  "name of cluster, user and context in kubeconfigs, by which kubectl tells this cluster from others",
			value: func(s *Settings) value { return scalar(&s.ClusterName, "name", contextName) },
		},

		{
			Name: "node-name", Section: sectionNode, DefaultHelp: "the host's name at the first start",
			Help:  "name of this node; it stays with the data directory, whatever the host is called later",
			value: func(s *Settings) value { return scalar(&s.NodeName, "name", ParseNodeName) },
		},
		{
			Name: "node-ip", Section: sectionNode, DefaultHelp: "the pod bridge's address",
			Help:  "address under which the node is known in the cluster",
			value: func(s *Settings) value { return scalar(&s.NodeIP, "address", address) },
		},
		{
			Name: "node-label", Section: sectionNode,
			Help:  "label that the node registers with, name=value",
			value: func(s *Settings) value { return list(&s.NodeLabels, "label", nodeLabel) },
		},
		{
			Name: "node-taint", Section: sectionNode,
			Help:  "taint that the node registers with, name=value:effect",
			value: func(s *Settings) value { return list(&s.NodeTaints, "taint", nodeTaint) },
		},

		{
			Name: "cluster-cidr", Section: sectionNetwork, Default: "10.42.0.0/16",
			Help:  "network of the pods",
			value: func(s *Settings) value { return scalar(&s.ClusterCIDR, "network", network) },
		},
		{
			Name: "service-cidr", Section: sectionNetwork, Default: "10.43.0.0/16",
			Help:  "network of the Services",
			value: func(s *Settings) value { return scalar(&s.ServiceCIDR, "network", network) },
		},
		{
			Name: "cluster-dns", Section: sectionNetwork, DefaultHelp: "the tenth address of service-cidr",
			Help:  "address of the cluster's DNS server",
			value: func(s *Settings) value { return scalar(&s.ClusterDNS, "address", address) },
		},
		{
			Name: "cluster-domain", Section: sectionNetwork, Default: "cluster.local",
			Help:  "DNS domain of the cluster",
			value: func(s *Settings) value { return scalar(&s.ClusterDomain, "name", domain) },
		},
		{
			Name: "cni", Section: sectionNetwork, Default: "bridge",
			Help:  "pod network: bridge is mote's own; none leaves it to what you put into /etc/cni/net.d",
			value: func(s *Settings) value { return choice(&s.CNI, "bridge", "none") },
		},
		{
			Name: "proxy", Section: sectionNetwork, Default: "auto",
			Help:  "kube-proxy's mode; auto takes nftables where the kernel has it; none runs no kube-proxy",
			value: func(s *Settings) value { return choice(&s.Proxy, "auto", "nftables", "iptables", "none") },
		},
		{
			Name: "http-proxy", Section: sectionNetwork, DefaultHelp: "the variable HTTP_PROXY",
			Help: "URL of the proxy for http:// requests to the outside, such as pulls of images; the cluster's own traffic never uses it; " +
				"one with a password belongs into the file or the environment, as all users see flags",
			Verbs: []string{"server"},
			value: func(s *Settings) value { return scalar(&s.HTTPProxy, "url", proxyURL) },
		},
		{
			Name: "https-proxy", Section: sectionNetwork, DefaultHelp: "the variable HTTPS_PROXY",
			Help:  "URL of the proxy for https:// requests to the outside, such as pulls of images; see http-proxy",
			Verbs: []string{"server"},
			value: func(s *Settings) value { return scalar(&s.HTTPSProxy, "url", proxyURL) },
		},
		{
			Name: "no-proxy", Section: sectionNetwork, DefaultHelp: "the variable NO_PROXY",
			Help:  "name, address or network outside that is reached without the proxy; those of the cluster are added",
			Verbs: []string{"server"},
			value: func(s *Settings) value { return list(&s.NoProxy, "name", proxyException) },
		},

		{
			Name: "manifests-dir", Section: sectionAddons, DefaultHelp: "server/manifests in data-dir",
			Help:  "what is in this directory is kept in the cluster: *.yaml, *.yml, *.json, and charts by NAME.chart.yaml",
			value: func(s *Settings) value { return scalar(&s.ManifestsDir, "path", absolutePath) },
		},
		{
			Name: "disable", Section: sectionAddons,
			Help:  "addon that does not run and leaves nothing in the cluster; several may be joined by commas",
			Verbs: []string{"server", "check", "run"},
			value: func(s *Settings) value {
				return choices(&s.Disable, "dns", "manifests", "metrics", "storage", "networkpolicy", "loadbalancer", "ingress")
			},
		},
		{
			Name: "load-balancer-pool", Section: sectionAddons, DefaultHelp: "the node's own address for all",
			Help:  "network on the machine's link whose addresses Services of type LoadBalancer get",
			value: func(s *Settings) value { return scalar(&s.LoadBalancerPool, "network", network) },
		},
		{
			Name: "ingress-http-port", Section: sectionAddons, Default: "80",
			Help:  "port on which Ingresses are served, on all addresses, while there are any",
			value: func(s *Settings) value { return scalar(&s.IngressHTTPPort, "port", port) },
		},
		{
			Name: "ingress-https-port", Section: sectionAddons, Default: "443",
			Help:  "port on which Ingresses are served with TLS",
			value: func(s *Settings) value { return scalar(&s.IngressHTTPSPort, "port", port) },
		},

		{
			Name: "profile", Section: sectionSecurity, Default: "default",
			Help:  "set of security settings; cis meets the CIS benchmark where workloads may have to be changed for it",
			value: func(s *Settings) value { return choice(&s.Profile, "default", "cis") },
		},
		{
			Name: "audit-policy", Section: sectionSecurity, DefaultHelp: "off; default with profile cis",
			Help:  "what is written to audit/audit.log in data-dir: off, default (no contents of Secrets, no noise), or a policy file",
			value: func(s *Settings) value { return scalar(&s.AuditPolicy, "policy", auditPolicy) },
		},
		{
			Name: "expose-metrics", Section: sectionSecurity, Default: "off",
			Help: "on lets Prometheus reach the controller manager, the scheduler and kube-proxy: they listen on the node's address and not on " +
				"127.0.0.1, and Services in kube-system name them; reading takes RBAC's get on /metrics, except kube-proxy's, which anybody may read",
			Verbs: []string{"server", "check"},
			value: func(s *Settings) value { return choice(&s.ExposeMetrics, "off", "on") },
		},

		{
			Name: "apiserver-arg", Section: sectionUpstream,
			Help:  "further argument for kube-apiserver, name=value",
			value: func(s *Settings) value { return list(&s.APIServerArgs, "argument", argument) },
		},
		{
			Name: "controller-manager-arg", Section: sectionUpstream,
			Help:  "further argument for kube-controller-manager, name=value",
			value: func(s *Settings) value { return list(&s.ControllerManagerArgs, "argument", argument) },
		},
		{
			Name: "scheduler-arg", Section: sectionUpstream,
			Help:  "further argument for kube-scheduler, name=value",
			value: func(s *Settings) value { return list(&s.SchedulerArgs, "argument", argument) },
		},
		{
			Name: "kubelet-arg", Section: sectionUpstream,
			Help:  "further argument for the kubelet, name=value",
			value: func(s *Settings) value { return list(&s.KubeletArgs, "argument", argument) },
		},
		{
			Name: "proxy-arg", Section: sectionUpstream,
			Help:  "further argument for kube-proxy, name=value",
			value: func(s *Settings) value { return list(&s.ProxyArgs, "argument", argument) },
		},

		{
			Name: "log-level", Section: sectionLog, Default: "info",
			Help:  "least level that is logged",
			value: func(s *Settings) value { return choice(&s.LogLevel, "debug", "info", "warn", "error") },
		},
		{
			Name: "log-format", Section: sectionLog, Default: "text",
			Help:  "form of a log line",
			value: func(s *Settings) value { return choice(&s.LogFormat, "text", "json") },
		},
	}
}

// datastoreVerbs returns the verbs that may have to open the store.
func datastoreVerbs() []string { return []string{"server", "datastore"} }
