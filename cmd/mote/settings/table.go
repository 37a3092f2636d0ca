package settings

// Sections of the table, in the order of help and reference.
const (
	sectionFiles    = "Files"
	sectionAPI      = "API"
	sectionNode     = "Node"
	sectionNetwork  = "Network"
	sectionAddons   = "Addons"
	sectionUpstream = "Arguments of the parts"
	sectionLog      = "Log"
)

// Setting is a row of the table.
type Setting struct {
	// Name is the flag without dashes and the key in a file; see Env for the variable.
	Name, Section, Help string
	// Default is the value that applies when nothing is said; DefaultHelp describes it where it
	// is worked out at start instead.
	Default, DefaultHelp string
	// Verbs take the setting as a flag; a setting without is taken by server alone.
	Verbs []string

	// value binds the row to its field.
	value func(*Settings) value
}

// Table returns every setting, by section.
func Table() []Setting {
	return []Setting{
		{
			Name: "data-dir", Section: sectionFiles, Default: "/var/lib/mote",
			Help:  "directory for everything that lasts: state, keys, images, containers",
			Verbs: []string{"server", "status", "check", "stop", "reset", "uninstall"},
			value: func(s *Settings) value { return scalar(&s.DataDir, "path", absolutePath) },
		},
		{
			Name: "run-dir", Section: sectionFiles, Default: "/run/mote",
			Help:  "directory for sockets and what need not outlive a reboot",
			Verbs: []string{"server", "status", "check", "image", "stop", "reset", "uninstall"},
			value: func(s *Settings) value { return scalar(&s.RunDir, "path", absolutePath) },
		},
		{
			Name: "kubelet-dir", Section: sectionFiles, Default: "/var/lib/kubelet",
			Help:  "the kubelet's directory: pods' volumes, plugins' sockets",
			Verbs: []string{"server", "check", "stop", "reset", "uninstall"},
			value: func(s *Settings) value { return scalar(&s.KubeletDir, "path", absolutePath) },
		},
		{
			Name: "image-dir", Section: sectionFiles, DefaultHelp: "images in data-dir",
			Help:  "image archives (*.tar, *.tar.gz, *.tar.zst) in it are imported and pinned at start",
			value: func(s *Settings) value { return scalar(&s.ImageDir, "path", absolutePath) },
		},
		{
			Name: "write-kubeconfig", Section: sectionFiles, DefaultHelp: "none",
			Help:  "write a further copy of the administrator's kubeconfig to this file, mode 0600",
			value: func(s *Settings) value { return scalar(&s.WriteKubeconfig, "path", absolutePath) },
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
			Name: "node-name", Section: sectionNode, DefaultHelp: "the host's name",
			Help:  "name of this node",
			value: func(s *Settings) value { return scalar(&s.NodeName, "name", nodeName) },
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
			Name: "manifests-dir", Section: sectionAddons, DefaultHelp: "server/manifests in data-dir",
			Help:  "what is in this directory is kept in the cluster: *.yaml, *.yml, *.json, and charts by NAME.chart.yaml",
			value: func(s *Settings) value { return scalar(&s.ManifestsDir, "path", absolutePath) },
		},
		{
			Name: "disable", Section: sectionAddons,
			Help:  "addon that does not run and leaves nothing in the cluster; several may be joined by commas",
			Verbs: []string{"server", "check", "run"},
			value: func(s *Settings) value { return choices(&s.Disable, "dns", "manifests", "metrics", "storage") },
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
